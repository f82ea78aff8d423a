"""``python -m training.report RUN``: one HTML page with curves, groups, settings and warnings of a run."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from slotcon_hub.cli.table import shorten
from slotcon_hub.templates import render_template
from training.engine.words import as_facts, as_options
from training.pretraining.curves import draw_curves, read_metrics
from training.pretraining.metric_names import as_metrics
from training.pretraining.result import as_rows, by_class

__all__ = ["main", "write_page"]

SHOWN = 4  # newest drawings of groups


def write_page(folder: Path) -> Path:
    """Write a self-contained ``report.html`` into the folder of a run, finished or not.

    Returns:
        Path of the page.

    Raises:
        ValueError: it is no folder of a run, or has no metrics yet.
    """
    lines = read_metrics(folder / "metrics.jsonl")
    draw_curves(folder / "metrics.jsonl", folder / "curves.png")
    run, summary = _read_json(folder / "run.json"), _read_json(folder / "summary.json")
    groups = [(f"after epoch {path.stem.split('-')[-1].lstrip('0')}", path) for path in _pngs(folder / "slots")]
    if (end := folder / "groups.png").is_file():
        groups.append(("at the end", end))
    page = folder / "report.html"
    text = render_template(
        Path(__file__).with_suffix(".html"),
        name=folder.resolve().name,
        state=_state(run, lines[-1]),
        warnings=_warnings(folder),
        result=as_rows(summary) if summary else {},
        classes=by_class(summary),
        curves=_image(folder / "curves.png"),
        groups=[(title, _image(path)) for title, path in groups[-SHOWN:]],
        last=as_metrics(lines[-1]),
        settings=as_options(run.get("settings", {})),
        facts=as_facts({key: run[key] for key in run if key not in ("settings", "resumed")}),
        resumed=[_start(start) for start in run.get("resumed", [])],
        shorten=shorten,
    )
    page.write_text(text, encoding="utf-8")
    return page


def _state(run: dict[str, Any], last: dict[str, Any]) -> str:
    steps = f" of {run['steps']:,}" if run.get("steps") else ""
    return (
        f"{run.get('recipe', 'a run')}: step {last['step']:,}{steps}, epoch {last['epoch']:.1f}, "
        f"loss {last['loss']:.3f}"
    )


def _start(start: dict[str, Any]) -> dict[str, Any]:
    """A later start of a run: its step, facts, and changed options."""
    facts = {key: value for key, value in start.items() if key not in ("step", "settings")}
    return {"step": f"{start['step']:,}", "facts": as_facts(facts) | as_options(start.get("settings", {}))}


def _warnings(folder: Path) -> list[str]:
    path = folder / "warnings.txt"
    return path.read_text().splitlines() if path.is_file() else []


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _pngs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def _image(path: Path) -> str:
    """A PNG as data URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def main() -> None:
    """Write the page of the run given on the command line."""
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m training.report RUN\n\nWrite RUN/report.html with curves, groups and settings.")
        raise SystemExit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    try:
        print(write_page(Path(sys.argv[1])))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()

"""Images of a run: its curves, the groups it discovered, and ``python -m training.report RUN``, a page of all."""

import base64
import html
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from training.pretraining.curves import draw_curves, read_metrics

__all__ = ["main", "write_page"]


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
img { max-width: 100% } table { border-collapse: collapse; font-size: 13px }
td, th { padding: 2px 14px 2px 0; text-align: left; border-bottom: 1px solid #eee; vertical-align: top }
.warning { background: #fff3cd; padding: .4em .8em } h2 { margin-top: 1.6em }
"""


def write_page(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a run, finished or not: one file, which needs no other.

    Returns:
        The page.

    Raises:
        ValueError: it is no folder of a run, or nothing was measured yet.
    """
    lines = read_metrics(folder / "metrics.jsonl")
    draw_curves(folder / "metrics.jsonl", folder / "curves.png")
    facts = _read_json(folder / "run.json")
    last = lines[-1]
    steps = facts.get("steps")
    parts = [f"<h1>{html.escape(folder.name)}</h1>", f"<p>{_state(facts, last, steps)}</p>"]
    parts += [f'<p class="warning">{html.escape(warning)}</p>' for warning in _warnings(folder)]
    if summary := _read_json(folder / "summary.json"):
        parts += ["<h2>Result</h2>", _table(_flat(summary))]
    parts += ["<h2>Curves</h2>", _image(folder / "curves.png")]
    groups = [*sorted((folder / "slots").glob("*.png")), folder / "groups.png"]
    for path in [path for path in groups if path.is_file()][-4:]:
        parts += [f"<h2>Groups, {html.escape(path.stem)}</h2>", _image(path)]
    parts += ["<h2>Last line</h2>", _table(last), "<h2>Settings</h2>", _table(_flat(facts))]
    page = folder / "report.html"
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(folder.name)}</title><style>{STYLE}</style>'
    page.write_text("\n".join([head, *parts]) + "\n", encoding="utf-8")
    return page


def _state(facts: dict[str, Any], last: dict[str, Any], steps: int | None) -> str:
    done = f"step {last['step']:,}" + (f" of {steps:,}" if steps else "")
    return html.escape(
        f"{facts.get('recipe', 'a run')}: {done}, epoch {last['epoch']:.1f}, loss {last['loss']:.3f}"
    )


def _warnings(folder: Path) -> list[str]:
    path = folder / "warnings.txt"
    return path.read_text().splitlines() if path.is_file() else []


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(number): one for number, one in enumerate(value, 1)}
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _table(values: dict[str, Any]) -> str:
    def cell(value: Any) -> str:
        return html.escape(f"{value:.5g}" if isinstance(value, float) else str(value))

    rows = (f"<tr><td>{html.escape(key)}</td><td>{cell(value)}</td></tr>" for key, value in values.items())
    return f"<table>{''.join(rows)}</table>"


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def main() -> None:
    """Write the page of the run that the command line names."""
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(
            "usage: python -m training.report RUN\n\nWrite RUN/report.html, curves, groups and settings on a page."
        )
        raise SystemExit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    try:
        print(write_page(Path(sys.argv[1])))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()

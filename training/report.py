"""Pictures of a run: its curves, the groups it discovered, and ``python -m training.report RUN``, a page of all."""

import base64
import html
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

__all__ = ["draw_curves", "draw_groups", "write_page"]

PANELS = {
    "Loss": ("loss", "group_loss", "slot_loss", "image_loss"),
    "Slots of a picture": ("active_slots", "positive_pairs"),
    "Dead prototypes": ("dead_slots",),
    "Entropy of prototype usage (1: all alike)": ("usage_entropy",),
    "Learning rate": ("lr",),
    "Teacher momentum": ("teacher_momentum",),
    "Gradient norm": ("grad_norm",),
    "kNN accuracy": ("knn",),
    "Images per second": ("images_per_second",),
    "Share of time waiting for data": ("data_wait",),
    "Memory, GB": ("memory_gb",),
}
"""Title of a panel to what is drawn in it; one without values is left out."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last one that is still being written is left out.

    Raises:
        ValueError: there is none.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.parent} is no folder of a run: {error}") from None
    if not lines:
        raise ValueError(f"{path} holds no line yet: wait for the first")
    return lines


def draw_curves(metrics: Path, target: Path) -> None:
    """Draw what was measured over the steps of a run into a PNG.

    Raises:
        ValueError: nothing was.
    """
    lines = read_metrics(metrics)
    panels = {title: [n for n in names if any(n in line for line in lines)] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    rows = math.ceil(len(panels) / 3)
    figure, axes = plt.subplots(rows, 3, figsize=(11, 2.3 * rows), layout="constrained", sharex=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1.3)
        axis.set_title(title, loc="left", fontsize=9)
        axis.tick_params(labelsize=8, labelbottom=True)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(frameon=False, fontsize=8)
    figure.supxlabel("step", fontsize=9)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def draw_groups(
    rows: dict[str, Sequence[np.ndarray]], target: Path, legend: dict[str, np.ndarray] | None = None
) -> None:
    """Draw rows of pictures, one column a scene, into a PNG.

    Args:
        rows: title to uint8 H x W x 3 pictures, the same number in each row.
        target: of the PNG.
        legend: name to uint8 colour, for a line below.
    """
    columns = len(next(iter(rows.values())))
    height, width = next(iter(rows.values()))[0].shape[:2]
    lines = math.ceil(len(legend or ()) / columns)
    size = (1.5 * columns, 1.5 * height / width * len(rows) + 0.25 * len(rows) + 0.2 * lines)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, layout="constrained", squeeze=False)
    for line, (title, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture)
            axis.axis("off")
        line[0].set_title(title, loc="left", fontsize=9)
    if legend:
        patches = [Patch(facecolor=color / 255, edgecolor="0.7", label=name) for name, color in legend.items()]
        figure.legend(handles=patches, loc="outside lower left", ncols=columns, frameon=False, fontsize=8)
    try:
        figure.savefig(target, dpi=130)
    finally:
        plt.close(figure)


def matched_colors(match: Sequence[int], palette: np.ndarray) -> np.ndarray:
    """The colour of each group: that of its class, or a grey.

    Args:
        match: the class of each group, or -1.
        palette: uint8 C x 3 colours of the classes.

    Returns:
        uint8 K x 3.
    """
    grey = np.linspace(60, 200, len(match)).astype(np.uint8)[:, None].repeat(3, axis=1)
    classes = np.array(match)[:, None]
    return np.where(classes >= 0, palette[classes[:, 0]], grey)


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
    parts += ["<h2>Curves</h2>", _picture(folder / "curves.png")]
    groups = [*sorted((folder / "slots").glob("*.png")), folder / "groups.png"]
    for path in [path for path in groups if path.is_file()][-4:]:
        parts += [f"<h2>Groups, {html.escape(path.stem)}</h2>", _picture(path)]
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


def _picture(path: Path) -> str:
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

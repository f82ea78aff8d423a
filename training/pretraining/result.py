"""Results of a finished run: export, figures, numbers before and after training, and next commands."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
from rich.table import Column, Table

from slotcon_hub import SlotCon
from slotcon_hub.export.teacher import export
from slotcon_hub.models.backbone import names_weights
from slotcon_hub.weights.architectures import plain_timm
from training.data import scenes
from training.engine.errors import first_line
from training.engine.words import show
from training.evaluation.command import finite
from training.pretraining.curves import draw_curves, read_metrics
from training.pretraining.metric_names import words
from training.pretraining.preview import Showcase
from training.pretraining.recipes import Recipe

__all__ = ["as_rows", "by_class", "finish", "next_commands", "print_result", "save_baseline", "summarize"]


def save_baseline(folder: Path, slotcon: SlotCon, showcase: Showcase) -> None:
    """Measure the prototypes before training if there are labels, and write the result to ``before.json``."""
    if found := showcase.measure(slotcon):
        (folder / "before.json").write_text(json.dumps(finite(asdict(found)), indent=2) + "\n")


def finish(folder: Path, slotcon: SlotCon, showcase: Showcase, recipe: Recipe, name: str) -> None:
    """Write export, figures and ``summary.json``, and print a summary."""
    trained = f"Recipe {name}, {recipe.epochs} epochs, batch {recipe.batch_size}, views of {recipe.view_size} px."
    if names_weights(recipe.backbone):
        trained += f" It started from the weights {recipe.backbone}."
    export(slotcon, folder / "export", input_size=recipe.view_size, trained=trained)
    found = showcase.measure(slotcon)
    try:
        showcase.draw(slotcon, found, folder / "groups.png")
    except Exception as error:  # a failed drawing must not fail a finished run
        print(f"warning: groups.png could not be drawn: {first_line(error)}", file=sys.stderr)
    draw_curves(folder / "metrics.jsonl", folder / "curves.png")

    start = folder / "before.json"
    before = json.loads(start.read_text()) if start.is_file() else None
    summary = summarize(read_metrics(folder / "metrics.jsonl"), before, finite(asdict(found)) if found else None)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print_result(folder, summary, next_commands(folder, recipe, showcase.folder))


def summarize(
    lines: list[dict[str, Any]], before: dict[str, Any] | None, after: dict[str, Any] | None
) -> dict[str, Any]:
    """The final numbers of a run, for ``summary.json``.

    Args:
        lines: of metrics.
        before: :class:`Segmentation` before training, as JSON; None if not measured.
        after: of the trained model.
    """
    summary = {key: lines[-1][key] for key in ("loss", "active_slots")}
    if probed := [line for line in lines if "knn" in line]:
        summary["probe"] = {"knn": probed[-1]["knn"], "epoch": probed[-1]["epoch"]}
    if after:
        summary |= {"classes": list(scenes.CLASSES), "before": before, "after": after}
    return summary


def as_rows(summary: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Rows of a summary: label to values before and after training, "" if unknown."""
    rows = {words(key): ("", f"{summary[key]:.{digits}f}") for key, digits in (("loss", 3), ("active_slots", 1))}
    if probe := summary.get("probe"):
        rows[f"{words('knn')}, %, epoch {probe['epoch']:g}"] = ("", _percent(probe["knn"]))
    for key, title in (("miou", "held-out mIoU, %"), ("pixel_accuracy", "held-out pixel accuracy, %")):
        if "after" in summary:
            rows[title] = (_percent((summary["before"] or {}).get(key)), _percent(summary["after"][key]))
    return rows


def by_class(summary: dict[str, Any]) -> list[dict[str, str]]:
    """IoU of each class before and after training, in per cent, and its prototype; "" if there is none."""
    if "after" not in summary:
        return []
    before, after = summary["before"] or {}, summary["after"]
    prototype = {c: str(k) for k, c in enumerate(after["match"])}
    return [
        {
            "name": name,
            "before": _percent(before["iou"][c] if before else None),
            "after": _percent(after["iou"][c]),
            "prototype": prototype.get(c, ""),
        }
        for c, name in enumerate(summary["classes"])
    ]


def print_result(folder: Path, summary: dict[str, Any], commands: dict[str, str]) -> None:
    """Print the numbers, the files, and the next commands."""
    rows = as_rows(summary)
    sides = ("before", "after") if any(start for start, _ in rows.values()) else ("after",)
    table = Table("", *(Column(side, justify="right") for side in sides), title="\nresult", title_justify="left")
    for title, values in rows.items():
        table.add_row(title, *values[-len(sides) :])
    show(table)
    if classes := by_class(summary):
        heads = ("IoU before, %", "after, %", "prototype")
        table = Table("class", *(Column(head, justify="right") for head in heads))
        for one in classes:
            table.add_row(*one.values())
        show(table)
    for text, path in (("curves", "curves.png"), ("groups", "groups.png"), ("weights", "export")):
        if (folder / path).exists():
            print(f"{text}: {folder / path}")
    print("\nnext:")
    for command, what in commands.items():
        print(f"  {command}\n      {what}")


def next_commands(folder: Path, recipe: Recipe, images: Path | None) -> dict[str, str]:
    """Next commands for a finished run, each with its purpose.

    Args:
        folder: of the run.
        recipe: of the run.
        images: folder for ``slotcon-hub concepts``; None if there is none that holds the run's images alone.
    """
    run, data = shlex.quote(str(folder)), shlex.quote(str(images)) if images else "FOLDER"
    ours = [name.removesuffix("_proto") for name in timm.list_models("slotcon_*_proto")]
    known = [name for name in ours if recipe.backbone.partition(".")[0] in (name, plain_timm(name)[0])]
    commands = {
        f"python -m training.report {run}": "curves, groups and settings on one page",
        f"slotcon-hub concepts --model {run} --images {data}": "what each prototype stands for",
    }
    if known:
        name = f"{known[0]}.mine"
        commands[f"slotcon-hub import {run} {name}"] = (
            f'a model by name: timm.create_model("{name}", pretrained=True)'
        )
    return commands


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"

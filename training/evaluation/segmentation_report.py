"""Segmentation results as tables, JSON and figures.

Dimensions: K prototypes, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Column, Table
from torch import Tensor

from slotcon_hub.concepts.drawing import colors
from slotcon_hub.models.sizes import find_sizes
from training.data.masks import IGNORE
from training.engine.words import show
from training.evaluation import command
from training.evaluation.benchmarks import Benchmark
from training.evaluation.figures import NO_CLASS, draw_confusion, draw_groups, matched_colors, paint, paint_over
from training.evaluation.metrics import Segmentation, score, score_part

__all__ = ["Example", "as_percent", "draw_examples", "report"]

FIRST = 10  # missing images listed in the JSON file


@dataclass(frozen=True)
class Example:
    """An image to draw."""

    number: int
    image: Tensor
    """uint8 3 x H x W."""
    truth: Tensor
    """H x W classes."""
    groups: dict[str, Tensor]
    """H x W prototype indices, "plain" and optionally "refined"."""


def report(
    settings: Any, benchmark: Benchmark, model: Any, counts: dict[str, Tensor], examples: list[Example]
) -> None:
    """Write ``settings.output``, print the tables, and write ``settings.figures``.

    Args:
        settings: of the command.
        benchmark: the data.
        model: the measured model.
        counts: K x C pixel counts, "plain" and optionally "refined".
        examples: to draw.

    Raises:
        ValueError: no pixel has a label.
    """
    if not counts["plain"].any():
        raise ValueError("no pixel of the masks has a label: check --masks")
    names = benchmark.classes
    if names is None:
        names = tuple(map(str, range(int(counts["plain"].any(0).nonzero().max()) + 1)))
        counts = {variant: confusion[:, : len(names)] for variant, confusion in counts.items()}
    found = {variant: score(confusion) for variant, confusion in counts.items()}
    numbers = {v: _numbers(counts[v], found[v], names, benchmark) for v in counts}
    protocol = _protocol(benchmark, model, len(names))
    command.write(settings.output, "segmentation", settings, protocol=protocol, **numbers)
    _print(settings, protocol, numbers)
    if settings.figures:
        settings.figures.mkdir(parents=True, exist_ok=True)
        draw_confusion(counts["plain"].numpy(), found["plain"].match, names, settings.figures / "confusion.png")
        title = "discovered groups{}, in the colours of their matched classes"
        rows = {name: (title.format(", refined" * (name == "refined")), one.match) for name, one in found.items()}
        draw_examples(examples, rows, names, settings.figures / "examples.png", benchmark.palette)


def _protocol(benchmark: Benchmark, model: Any, classes: int) -> dict[str, Any]:
    used = len(benchmark.images)
    size = benchmark.size
    return {
        "images": used,
        **({"listed": benchmark.listed, "missing": len(benchmark.missing)} if benchmark.listed else {}),
        **({"first_missing": benchmark.missing[:FIRST]} if benchmark.missing else {}),
        "prototypes": model.num_classes,
        "classes": classes,
        "pixels": f"short side {size} (bilinear; labels nearest), central {size} x {size}" if size else "all",
        "sizes": f"the model takes images {find_sizes(model)}",
        "mean": model.pretrained_cfg["mean"],
        "std": model.pretrained_cfg["std"],
        "assignment": "argmax of cosine similarities, resized bilinearly to the pixels (align_corners=False)",
        "matching": "Hungarian, one to one, most matched pixels, one confusion matrix over all images",
        "ignored_label": IGNORE,
    }


def _numbers(
    confusion: Tensor, found: Segmentation, names: tuple[str, ...], benchmark: Benchmark
) -> dict[str, Any]:
    numbers: dict[str, Any] = {"miou": found.miou, "pixel_accuracy": found.pixel_accuracy}
    if len(confusion) > len(names):
        numbers["majority_accuracy"] = found.majority_accuracy
    for kind, classes in benchmark.kinds.items():
        numbers[f"{kind}_miou"], numbers[f"{kind}_pixel_accuracy"] = score_part(confusion, found, classes)
    group = {c: k for k, c in enumerate(found.match) if c >= 0}
    numbers["per_class"] = [
        {
            "name": name,
            "pixels": int(confusion[:, c].sum()),
            "prototype": group.get(c),
            "iou": found.iou[c],
            "accuracy": score_part(confusion, found, [c])[1],
        }
        for c, name in enumerate(names)
    ]
    numbers["confusion"] = confusion.tolist()
    return numbers


def _print(settings: Any, protocol: dict[str, Any], numbers: dict[str, dict[str, Any]]) -> None:
    plain = numbers["plain"]
    images = f"{protocol['images']:,} images"
    if "listed" in protocol:
        images = f"{protocol['images']:,} of {protocol['listed']:,} listed images"
    print(
        f"{settings.model} on {settings.data}: {images}, {protocol['prototypes']} prototypes, "
        f"{protocol['classes']} classes; {protocol['sizes']}"
    )
    if "first_missing" in protocol:
        names = ", ".join(protocol["first_missing"][:3])
        print(f"{protocol['missing']:,} listed images or their masks are missing: {names}, ...")
    whole = Table("%", *(Column(name if len(numbers) > 1 else "", justify="right") for name in numbers))
    for name in (name for name, value in plain.items() if isinstance(value, float)):
        label = name.replace("_", " ").replace("miou", "mIoU")
        whole.add_row(label, *(as_percent(n[name]) for n in numbers.values()))
    show(whole)
    variants = [variant for variant in numbers if variant != "plain"]
    titles = ("pixels", "prototype", "IoU", "accuracy", *(f"{variant} IoU" for variant in variants))
    longest = max(len(one["name"]) for one in plain["per_class"])
    table = Table(Column("%", min_width=longest), *(Column(title, justify="right") for title in titles))
    total = sum(one["pixels"] for one in plain["per_class"])
    for i, one in enumerate(plain["per_class"]):
        prototype = "none" if one["prototype"] is None else str(one["prototype"])
        others = [as_percent(numbers[variant]["per_class"][i]["iou"]) for variant in variants]
        cells = (as_percent(one["pixels"] / total), prototype, as_percent(one["iou"]), as_percent(one["accuracy"]))
        table.add_row(one["name"], *cells, *others)
    show(table)


def as_percent(value: float) -> str:
    """Format a fraction as a percentage; empty for NaN."""
    return "" if value != value else f"{100 * value:.2f}"


def draw_examples(
    examples: Sequence[Example],
    rows: Mapping[str, tuple[str, Sequence[int]]],
    names: Sequence[str],
    target: Path,
    palette: np.ndarray | None = None,
) -> None:
    """Draw images, true classes and predictions into a PNG.

    Args:
        examples: to draw.
        rows: maps a key of ``Example.groups`` to a title and the class of each group, or -1.
        names: of the classes.
        target: of the PNG.
        palette: class colours, uint8 C x 3; None: distinct colours.
    """
    palette = colors(len(names)) if palette is None else palette
    of_class = matched_colors([*range(len(names)), *[-1] * (IGNORE + 1 - len(names))], palette)
    images = [example.image.permute(1, 2, 0).numpy() for example in examples]
    drawn = {
        "images": images,
        "true classes": [paint(example.truth.numpy(), of_class) for example in examples],
    }
    shown = {c if c < len(names) else -1 for example in examples for c in example.truth.unique().tolist()}
    for name, (title, match) in rows.items():
        of_group = matched_colors(match, palette)
        groups = [example.groups[name].numpy() for example in examples]
        drawn[title] = [paint_over(*pair, of_group) for pair in zip(images, groups, strict=True)]
        shown |= {match[k] for group in groups for k in np.unique(group)}
    legend = {name: of_class[c] for c, name in enumerate(names) if c in shown}
    if -1 in shown:
        legend["no class"] = NO_CLASS
    draw_groups(drawn, target, legend)

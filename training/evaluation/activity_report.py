"""The activity of slots as tables, JSON and images.

Dimensions: K prototypes, E examples.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table

from training.engine.words import show
from training.evaluation import command
from training.evaluation.figures import draw_activity, draw_segments
from training.evaluation.models import similarities, standardize

__all__ = ["report"]

EXTREMES = 5  # most and least active slots shown
BATCH = 512  # images, as in the paper's count of negatives
_WORDS = {
    "active_slots": "active slots per image",
    "dead_slots": "prototypes active in no image",
    "positive_pairs": "slots active in both views",
    "excluded_terms": "slots active in one view or none",
}


def report(settings: Any, model: Any, data: Any, found: Any) -> None:
    """Write ``settings.output``, print the tables, and write ``settings.figures``.

    Args:
        settings: of the command.
        model: the measured model.
        data: the images.
        found: the :class:`Activity`.
    """
    usage = found.usage.tolist()
    live = sorted((k for k, count in enumerate(usage) if count), key=lambda k: -usage[k])
    most, least = live[:EXTREMES], live[EXTREMES:][: -EXTREMES - 1 : -1]
    numbers = {
        "images": found.images,
        "active_slots": sum(usage) / found.images,
        "dead_slots": len(usage) - len(live),
        "active_slots_of_a_view": found.in_views,
        "positive_pairs": found.pairs,
        "excluded_terms": len(usage) - found.pairs,
        f"excluded_negatives_in_a_batch_of_{BATCH}": BATCH * (len(usage) - found.in_views),
    }
    command.write(
        settings.output,
        "activity",
        settings,
        protocol=_protocol(model, data),
        **numbers,
        most_active=most,
        least_active=least,
        usage=usage,
        images_by_active_slots=found.histogram.tolist(),
    )
    _print(settings, usage, numbers, most, least)
    if settings.figures:
        settings.figures.mkdir(parents=True, exist_ok=True)
        draw_activity(
            np.sort(found.usage.numpy())[::-1], found.histogram.numpy(), settings.figures / "activity.png"
        )
        blocks = {"most active": most, "least active, without dead slots": least}
        drawn = {
            title: {
                f"prototype {k}, in {usage[k]:,} of {found.images:,}": _segments(
                    model, data, k, found.examples[k].tolist()
                )
                for k in slots
            }
            for title, slots in blocks.items()
        }
        draw_segments(drawn, settings.figures / "segments.png")


def _protocol(model: Any, data: Any) -> dict[str, Any]:
    side = data.config["input_size"][-1]
    with torch.inference_mode():
        cells = similarities(model, standardize(model, torch.zeros(1, 3, side, side, dtype=torch.uint8))).shape[2:]
    return {
        "prototypes": model.num_classes,
        "preprocessing": data.config,
        "cells": list(cells),
        "active": "argmax of cosine similarities in at least one cell, without centre and temperature",
        "views": f"two of {side} x {side} as in pre-training, one pair an image, drawn from (seed, number)",
        "network": "teacher, in eval mode, for both views",
    }


def _print(settings: Any, usage: list[int], numbers: dict[str, Any], most: list[int], least: list[int]) -> None:
    print(f"{settings.model} on {settings.data}, {len(usage)} prototypes")
    table = Table(show_header=False)
    for name, value in numbers.items():
        table.add_row(
            _WORDS.get(name, name.replace("_", " ")), f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
        )
    show(table)
    table = Table("most active", "images", "least active", "images")
    for i in range(len(most)):
        pair = [most[i], least[i]] if i < len(least) else [most[i]]
        table.add_row(*(cell for k in pair for cell in (str(k), f"{usage[k]:,}")))
    show(table)


def _segments(model: Any, data: Any, slot: int, numbers: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images, uint8 S x S x 3, each with the slot's mask, bool S x S, resized bilinearly from its cells."""
    drawn = []
    for image in (data.whole(number) for number in numbers if number >= 0):
        with torch.inference_mode():
            scores = similarities(model, standardize(model, image[None]))
        cells = (scores.argmax(1, keepdim=True) == slot).float()
        inside = F.interpolate(cells, image.shape[1:], mode="bilinear", align_corners=False)[0, 0] > 0.5
        drawn.append((image.permute(1, 2, 0).numpy(), inside.cpu().numpy()))
    return drawn

"""Readable names of the metrics of pre-training, with number formats."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["as_metrics", "words"]

_METRICS = {
    "step": ("step", ",.0f"),
    "epoch": ("epoch", ".2f"),
    "loss": ("loss", ".3f"),
    "group_loss": ("grouping loss", ".3f"),
    "slot_loss": ("slot loss", ".3f"),
    "image_loss": ("image loss", ".3f"),
    "active_slots": ("active slots of a view", ".1f"),
    "positive_pairs": ("slots active in both views", ".1f"),
    "excluded_terms": ("slots active in one view or none", ".1f"),
    "dead_slots": ("prototypes that no image uses", ",.0f"),
    "usage_entropy": ("entropy of prototype usage (1: uniform)", ".3f"),
    "lr": ("learning rate", ".3g"),
    "teacher_momentum": ("momentum of the teacher", ".6f"),
    "grad_norm": ("gradient norm", ".3g"),
    "knn": ("accuracy of 20 nearest neighbours", ".1%"),
    "unreadable": ("images that cannot be read", ",.0f"),
    "images_per_second": ("images per second", ",.0f"),
    "data_wait": ("share of time waiting for data", ".1%"),
    "memory_gb": ("memory, GB", ".1f"),
}
"""Key to name and format, in display order."""


def words(key: str) -> str:
    """Readable name of a metric."""
    return _METRICS[key][0] if key in _METRICS else key.replace("_", " ")


def as_metrics(line: Mapping[str, Any]) -> dict[str, str]:
    """A line of metrics as names and rounded numbers, without NaN and Inf."""
    known = [key for key in _METRICS if key in line]
    return {
        words(key): format(line[key], _METRICS[key][1] if key in known else ".4g")
        for key in [*known, *(key for key in line if key not in known)]
        if isinstance(line[key], int | float) and math.isfinite(line[key])
    }

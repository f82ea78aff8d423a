"""How settings and numbers are shown to people: words in place of keys, rounded, nothing for what is not set."""

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console

__all__ = ["as_facts", "as_metrics", "as_options", "show", "words"]

_METRICS = {
    "step": ("step", ",.0f"),
    "epoch": ("epoch", ".2f"),
    "loss": ("loss", ".3f"),
    "group_loss": ("grouping loss", ".3f"),
    "slot_loss": ("slot loss", ".3f"),
    "image_loss": ("image loss", ".3f"),
    "active_slots": ("active slots of a view", ".1f"),
    "positive_pairs": ("slots that are active in both views", ".1f"),
    "excluded_terms": ("slots that are active in one view or none", ".1f"),
    "dead_slots": ("prototypes that no image uses", ",.0f"),
    "usage_entropy": ("entropy of the use of prototypes (1: all alike)", ".3f"),
    "lr": ("learning rate", ".3g"),
    "teacher_momentum": ("momentum of the teacher", ".6f"),
    "grad_norm": ("norm of the gradients", ".3g"),
    "knn": ("accuracy of 20 nearest neighbours", ".1%"),
    "unreadable": ("images that cannot be read", ",.0f"),
    "images_per_second": ("images a second", ",.0f"),
    "data_wait": ("share of time waiting for data", ".1%"),
    "memory_gb": ("memory, GB", ".1f"),
}
"""Of a line of metrics: words and format, in the order that they are shown in."""

_FACTS = {
    "peak_lr": "peak learning rate",
    "micro_batch": "images in a forward of a process",
    "threads": "CPU threads of a process",
    "mixed_precision": "precision of the layers",
    "python": "Python",
    "revision": "revision of the checkout",
    "time": "started",
}


def show(*parts: Any) -> None:
    """Print text and tables as rich does, but letter for letter: names of files and classes may hold [brackets]."""
    Console(markup=False, emoji=False).print(*parts)


def words(key: str) -> str:
    """The words for the key of a metric or a fact."""
    return _METRICS[key][0] if key in _METRICS else _FACTS.get(key, key.replace("_", " "))


def as_metrics(line: Mapping[str, Any]) -> dict[str, str]:
    """A line of metrics: words to rounded numbers; one that is no number is left out."""
    known = [key for key in _METRICS if key in line]
    return {
        words(key): format(line[key], _METRICS[key][1] if key in known else ".4g")
        for key in [*known, *(key for key in line if key not in known)]
        if isinstance(line[key], int | float) and math.isfinite(line[key])
    }


def as_options(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a run as its options, such as ``--batch-size``, those of the objective among them."""
    shown: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            shown |= as_options(value)
        elif (text := _text(value)) is not None:
            shown[f"--{key.replace('_', '-')}"] = text
    return shown


def as_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """What else is known of a run, such as its device and its versions: words to text."""
    if facts.get("mixed_precision") == "no":  # as accelerate calls it
        facts = {**facts, "mixed_precision": "float32"}
    texts = {words(key): _text(value) for key, value in facts.items()}
    return {key: text for key, text in texts.items() if text is not None}


def _text(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items()) or None
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return None if value is None else str(value)

"""Readable texts for settings and facts: words instead of keys, rounded numbers, unset values left out."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

__all__ = ["as_facts", "as_options", "show"]

_FACTS = {
    "peak_lr": "peak learning rate",
    "micro_batch": "images in a forward of a process",
    "threads": "CPU threads of a process",
    "mixed_precision": "precision of the layers",
    "convolutions": "float32 convolutions",
    "python": "Python",
    "revision": "revision of the checkout",
    "time": "started",
}


def show(*parts: Any) -> None:
    """Print text and tables by rich without markup, since names of files and classes may have [brackets]."""
    Console(markup=False, emoji=False).print(*parts)


def as_options(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings of a run as options, such as ``--batch-size``, including those of the objective."""
    shown: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            shown |= as_options(value)
        elif (text := _text(value)) is not None:
            shown[f"--{key.replace('_', '-')}"] = text
    return shown


def as_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts of a run, such as device and versions, as labels and texts."""
    if facts.get("mixed_precision") == "no":  # as accelerate calls it
        facts = {**facts, "mixed_precision": "float32"}
    texts = {_FACTS.get(key, key.replace("_", " ")): _text(value) for key, value in facts.items()}
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

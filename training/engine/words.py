"""How settings and facts are shown to people: words in place of keys, rounded, nothing for what is not set."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

__all__ = ["as_facts", "as_options", "show"]

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

"""Early checks of output paths."""

import os
from pathlib import Path

__all__ = ["unwritable"]


def unwritable(target: Path, option: str, *, new: bool = False) -> str | None:
    """Find out, without writing, why a file or folder could not be created or replaced.

    Args:
        target: it and its parent folders need not exist.
        option: of the command, for the message.
        new: it must not exist.

    Returns:
        A sentence, or None if no problem is known.
    """
    if new and target.exists():
        return f"{target} exists: choose another {option}"
    place = next(path for path in (target, *target.absolute().parents) if path.exists())
    if place != target and not place.is_dir():
        return f"{place} is a file, so {target} cannot be created in it: choose another {option}"
    if not os.access(place, os.W_OK):
        return f"no permission to write {target}: choose another {option}"
    return None

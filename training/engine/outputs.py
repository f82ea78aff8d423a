"""Where results are written: folders are made, with those above them, and what prevents that is known early."""

import os
from pathlib import Path

__all__ = ["unwritable"]


def unwritable(target: Path, option: str) -> str | None:
    """Find out, without writing, what prevents that a file or folder is made or replaced.

    Args:
        target: which need not exist, nor the folders above it.
        option: that names it.

    Returns:
        A sentence, or None if nothing is known.
    """
    place = next(path for path in (target, *target.absolute().parents) if path.exists())
    if place != target and not place.is_dir():
        return f"{place} is a file, so that {target} cannot be in it: choose another {option}"
    if not os.access(place, os.W_OK):
        return f"{target} cannot be written, without the permission: choose another {option}"
    return None

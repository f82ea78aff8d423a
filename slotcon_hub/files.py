"""Atomic writes of files and folders, the folder of caches, and SHA-256."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "cache_folder", "remove_leftovers", "sha256"]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path, whose file or folder replaces ``path`` once the block ends without an error.

    Args:
        path: its parent folder is created; after an error, what was there is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        new, old = scratch / "new" / path.name, scratch / "old"
        new.parent.mkdir()
        yield new
        if path.exists() and (path.is_dir() or new.is_dir()):  # only a file replaces a file in one step
            path.rename(old)
        try:
            new.replace(path)
        except BaseException:  # also Ctrl-C
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted calls of :func:`atomic_write` have left in a folder."""
    for left in folder.glob(".*-*"):
        if left.is_dir() and {part.name for part in left.iterdir()} <= {"new", "old"}:
            shutil.rmtree(left)


def cache_folder() -> Path:
    """The folder of what is made once: ``SLOTCON_HUB_CACHE``, or one in the user's cache. It need not exist.

    Raises:
        ValueError: neither is set, and the user has no home folder.
    """
    if chosen := os.environ.get("SLOTCON_HUB_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slotcon_hub"
    except RuntimeError:
        raise ValueError(
            "this user has no home folder: set SLOTCON_HUB_CACHE to one for what is made once"
        ) from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

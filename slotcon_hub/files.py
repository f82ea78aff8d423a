"""Atomic writes of files and folders, the folder of caches, and SHA-256."""

import errno
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

    An existing folder stays, and its content is replaced: it may be a link, a mount point or the current folder.

    Args:
        path: its parent folder is created; after an error, what was there is unchanged.

    Raises:
        IsADirectoryError: a file was written, but the path is a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = Path(os.path.abspath(path)).name  # of "." too
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=path if path.is_dir() else path.parent))
    try:
        new, old = scratch / "new" / name, scratch / "old"
        new.parent.mkdir()
        yield new
        if path.is_dir():
            if not new.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            old.mkdir()
            before = [(part, old / part.name) for part in path.iterdir() if part.name != scratch.name]
            _move([*before, *((part, path / part.name) for part in new.iterdir())])
        elif new.is_dir() and path.exists():
            _move([(path, old), (new, path)])
        else:
            new.replace(path)  # in one step
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(moves: list[tuple[Path, Path]]) -> None:
    """Rename files and folders, all or none."""
    try:
        for source, target in moves:
            source.rename(target)
    except BaseException:  # also Ctrl-C
        for source, target in reversed(moves):
            if target.exists() and not source.exists():
                target.rename(source)
        raise


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

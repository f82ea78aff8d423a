"""Folders that are there as a whole, or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, which takes the place of the named one once all in it is written.

    Args:
        folder: need not exist; what it holds is removed at the end, and stays if anything fails.

    Raises:
        OSError: the place cannot be written to.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new = scratch / "new"  # of mkdtemp's own folder, nobody else may read
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(scratch / "old")
        try:
            new.rename(folder)
        except OSError:
            if (scratch / "old").exists():
                (scratch / "old").rename(folder)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

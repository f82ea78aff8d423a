"""Encoded images by index, from folders, Parquet files and the Hugging Face Hub."""

from pathlib import Path
from typing import Protocol

from slotcon_hub.images import ImageFiles, files_below
from training.data.layouts import LAYOUTS, LayoutName
from training.data.streaming import ParquetStream
from training.data.tables import ImageTable, find_source, list_parquet, load_table

__all__ = [
    "TOLERATED",
    "Images",
    "UnreadableImage",
    "are_too_many",
    "open_images",
]

TOLERATED = 0.01  # fraction of images that may be unreadable; a single one always may, unless it is the only image


class UnreadableImage(ValueError):
    """An image cannot be read; a few such images are tolerated."""

    @classmethod
    def of(cls, name: str, error: OSError) -> "UnreadableImage":
        """Describe the error; no ``__init__`` of two arguments, which could not be pickled in a worker."""
        return cls(f"{name} cannot be read: {error.strerror or error}")


def are_too_many(unreadable: int, images: int) -> bool:
    """Whether more than ``TOLERATED`` of the images are unreadable."""
    return unreadable > min(max(TOLERATED * images, 1), images - 1)


class Images(Protocol):
    """Encoded images by index."""

    def __len__(self) -> int:
        """Number of images."""

    def name(self, index: int) -> str:
        """Path or row number, for messages."""

    def read(self, index: int) -> bytes:
        """Read the encoded file; raises OSError if that fails."""

    def digest(self) -> str:
        """Hash of the images and their order, independent of where they are stored."""


def open_images(
    data: str,
    split: str = "train",
    column: str = "image",
    *,
    layout: LayoutName | None = None,
    streaming: bool = False,
) -> Images:
    """Open the images of ``--data``.

    Args:
        data: a folder of images, or a table, see :func:`training.data.tables.find_source`.
        split: of a Hub data set, or of a folder of Parquet files, see :func:`training.data.tables.split_of`; all
            files are ``train`` if none names a split.
        column: image column of a table.
        layout: if given, ``data`` may be the root of that data set.
        streaming: read a table on demand, without a copy on disk; then a collective call of all processes.

    Raises:
        ValueError: there are no images.
    """
    path, files = Path(data).expanduser(), None
    if not (data.startswith("hf:") or "://" in data or (path.suffix == ".parquet" and not path.is_dir())):
        folders = LAYOUTS[layout].find(path) if layout else (path,)
        files = list(files_below(*folders))
        if not any(file.endswith(".parquet") for file in files):
            if streaming:
                raise ValueError(f"{path} holds no Parquet file to stream: leave out --streaming")
            return ImageFiles(*folders, listed=files)
        files = files if folders == (path,) else None
    source = find_source(data, files)
    if streaming:
        return ParquetStream(lambda: list_parquet(data, split, source), column)
    return ImageTable(load_table(data, split, source), column)

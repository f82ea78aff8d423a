"""Where images come from: folders, Parquet files and the Hugging Face Hub, as encoded files by number."""

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

TOLERATED = 0.01  # share of the images that may be unreadable; one may always, beside others


class UnreadableImage(ValueError):
    """An image cannot be read: its name and the reason; there may be a few of them."""

    @classmethod
    def of(cls, name: str, error: OSError) -> "UnreadableImage":
        """By the image's name, and what went wrong; not by ``__init__``, so that it travels from a worker."""
        return cls(f"{name} cannot be read: {error.strerror or error}")


def are_too_many(unreadable: int, images: int) -> bool:
    """Whether so many of the images cannot be read that the data must be mended first."""
    return unreadable > min(max(TOLERATED * images, 1), images - 1)


class Images(Protocol):
    """Encoded images, by number."""

    def __len__(self) -> int:
        """Number of images."""

    def name(self, index: int) -> str:
        """What a person finds the image by."""

    def read(self, index: int) -> bytes:
        """The encoded file; raises OSError where there is none."""

    def digest(self) -> str:
        """What tells these images, and their order, from others; the same wherever they are kept."""


def open_images(
    data: str,
    split: str = "train",
    column: str = "image",
    *,
    layout: LayoutName | None = None,
    streaming: bool = False,
) -> Images:
    """Open what ``--data`` names.

    Args:
        data: a folder of images, or a table as :func:`training.data.tables.find_source` has it.
        split: of a Hub data set, or of a folder of Parquet files, of which each is of the split that
            :func:`training.data.tables.split_of` names. Where none names one, all are ``train``.
        column: that holds the images of a table.
        layout: of a folder, which may then be that of the whole data set.
        streaming: read a table as it is needed, and keep nothing of it on the disk. All processes must call this
            together then.

    Raises:
        ValueError: there is nothing to read, in one sentence.
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

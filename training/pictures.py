"""Where pictures come from: folders, Parquet files and the Hugging Face Hub, as encoded files by number."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

__all__ = ["ImageFiles", "ImageTable", "Pictures", "decode", "open_pictures"]

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


class Pictures(Protocol):
    """Encoded pictures, by number."""

    def __len__(self) -> int:
        """Number of pictures."""

    def name(self, index: int) -> str:
        """What a person finds the picture by."""

    def read(self, index: int) -> bytes:
        """The encoded file; raises OSError where there is none."""


class ImageFiles:
    """All JPEG, PNG and WebP files below a folder, in order of their paths.

    Links to folders are followed. What is hidden is left out: macOS puts a ``._x.jpg`` beside an ``x.jpg``.
    """

    def __init__(self, folder: Path) -> None:
        """List the files.

        Raises:
            ValueError: the folder does not exist, or holds no picture.
        """
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: give --data a folder of pictures")
        self.paths = sorted(path for path in _files_below(folder) if path.lower().endswith(SUFFIXES))
        if not self.paths:
            raise ValueError(f"{folder} holds no {', '.join(SUFFIXES)} file, at any depth: give --data another")

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path of a file."""
        return self.paths[index]

    def read(self, index: int) -> bytes:
        """Bytes of a file."""
        return Path(self.paths[index]).read_bytes()


class ImageTable:
    """The image column of a ``datasets`` table, left encoded."""

    def __init__(self, table: Any, column: str) -> None:
        """Take a table.

        Raises:
            ValueError: it has no such column of images, or no row.
        """
        import datasets

        others = f"give --image-column one of {', '.join(table.column_names)}"
        if column not in table.column_names:
            raise ValueError(f"there is no column {column!r}: {others}")
        if not len(table):
            raise ValueError("the data set has no rows: give --data another")
        self.column = column
        try:
            self.table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError):
            raise ValueError(f"column {column!r} holds no images: {others}") from None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.table)

    def name(self, index: int) -> str:
        """Row number, and the path if the table knows one."""
        path = self._image(index).get("path")
        return f"row {index}" + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        """Bytes of an image; those of its file where the table holds paths."""
        image = self._image(index)
        if image.get("bytes"):
            return image["bytes"]
        if image.get("path"):
            return Path(image["path"]).read_bytes()
        raise OSError(f"row {index} is empty")

    def _image(self, index: int) -> dict[str, Any]:
        return self.table[index][self.column] or {}


def open_pictures(data: str, split: str = "train", column: str = "image") -> Pictures:
    """Open what ``--data`` names.

    Args:
        data: a folder of pictures, a Parquet file or a folder of them, or ``hf:`` and the name of a data set on
            the Hugging Face Hub.
        split: of a Hub data set, or of a folder of Parquet files: those that have it in the names of their files
            or folders, as on the Hub. Where nothing names a split, all files are ``train``.
        column: that holds the images of a table.

    Raises:
        ValueError: there is nothing to read, in one sentence.
    """
    if data == "hf:":
        raise ValueError("hf: is followed by the name of a data set: give --data hf:<owner>/<name>")
    if data.startswith("hf:"):
        return ImageTable(_load_table(data, split, data.removeprefix("hf:")), column)
    path = Path(os.path.expanduser(data))
    if path.suffix == ".parquet" and not path.is_dir():
        if not path.is_file():
            raise ValueError(f"there is no file {path}: give --data a Parquet file or a folder")
        return ImageTable(_load_table(data, "train", "parquet", data_files=str(path)), column)
    if any(file.endswith(".parquet") for file in _files_below(path)):
        return ImageTable(_load_table(data, split, "parquet", data_dir=str(path)), column)
    return ImageFiles(path)


def _files_below(folder: Path) -> Iterator[str]:
    """Yield the paths of files that are not hidden; a folder that several links lead to is entered once."""
    entered = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        if place in entered:
            folders.clear()
            continue
        entered.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(root, name) for name in files if not name.startswith("."))


def _load_table(data: str, split: str, *source: str, **files: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(*source, split=split, **files)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{data}, split {split!r}, could not be loaded: {reason}") from None


def decode(data: bytes) -> Tensor:
    """Decode a picture of any colour mode to RGB, uint8 3 x H x W.

    Transparency is dropped, 16 bits a channel become their upper 8, and of an animation the first frame is
    taken. The orientation in EXIF is not applied, as usual in pre-training.

    Raises:
        OSError: it is damaged, no picture, or so large (by Pillow's limit) that it may be a decompression bomb.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:  # reads the header, and refuses bombs
                if image.format == "JPEG":
                    # The fast way. Only JPEGs take it: a damaged PNG ends torchvision in a segmentation fault.
                    with contextlib.suppress(RuntimeError):
                        return decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
                if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
                    image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except Exception as error:  # Pillow raises whatever its parsers stumble over
            raise OSError(f"{type(error).__name__}: {error}") from None

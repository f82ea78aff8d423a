"""Where images come from: folders, Parquet files and the Hugging Face Hub, as encoded files by number."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from slotcon_hub.images import ImageFiles, files_below
from training.data.layouts import LAYOUTS, LayoutName
from training.data.streaming import ParquetStream

__all__ = [
    "TOLERATED",
    "ImageTable",
    "Images",
    "UnreadableImage",
    "are_too_many",
    "load_table",
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


SPLIT = re.compile(r"(train|validation|val|test)(?![a-zA-Z])")


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

    def digest(self) -> str:
        """SHA-256 of the names of the images' files and of the numbers of their bytes, as far as they are known."""
        import pyarrow.compute as pc

        images = self.table.with_format("arrow")[:].column(self.column)
        paths, sizes = pc.struct_field(images, "path"), pc.binary_length(pc.struct_field(images, "bytes"))
        rows = (
            f"{size} {os.path.basename(path or '')}"
            for path, size in zip(paths.to_pylist(), sizes.to_pylist(), strict=True)
        )
        return hashlib.sha256("\0".join(rows).encode()).hexdigest()

    def _image(self, index: int) -> dict[str, Any]:
        return self.table[index][self.column] or {}


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
        data: a folder of images, a Parquet file (or the URL of some) or a folder of them, or ``hf:`` and the
            name of a data set on the Hugging Face Hub.
        split: of a Hub data set, or of a folder of Parquet files: those that have it in the names of their files
            or folders, as on the Hub. Where nothing names a split, all files are ``train``.
        column: that holds the images of a table.
        layout: of a folder, which may then be that of the whole data set.
        streaming: read a table as it is needed, and keep nothing of it on the disk. All processes must call this
            together then.

    Raises:
        ValueError: there is nothing to read, in one sentence.
    """
    if data == "hf:":
        raise ValueError("hf: is followed by the name of a data set: give --data hf:<owner>/<name>")
    path = Path(os.path.expanduser(data))
    if data.startswith("hf:"):
        source: dict[str, Any] = {"path": data.removeprefix("hf:")}
    elif "://" in data:
        source, split = {"path": "parquet", "data_files": data}, "train"
    elif path.suffix == ".parquet" and not path.is_dir():
        if not path.is_file():
            raise ValueError(f"there is no file {path}: give --data a Parquet file or a folder")
        source, split = {"path": "parquet", "data_files": str(path)}, "train"
    else:
        folders = LAYOUTS[layout].find(path) if layout else (path,)
        files = list(files_below(*folders))
        if not any(file.endswith(".parquet") for file in files):
            if streaming:
                raise ValueError(f"{path} holds no Parquet file to stream: leave out --streaming")
            return ImageFiles(*folders, listed=files)
        source = _parquet(path)
    if streaming:
        return ParquetStream(lambda: _list_parquet(data, split, source), column)
    return ImageTable(_load(data, split, source), column)


def load_table(data: str, split: str) -> Any:
    """Load a split of a folder of Parquet files, or of ``hf:`` and the name of a data set.

    Raises:
        ValueError: it cannot be loaded.
    """
    if data.startswith("hf:"):
        return _load(data, split, {"path": data.removeprefix("hf:")})
    return _load(data, split, _parquet(Path(data).expanduser()))


def _parquet(folder: Path) -> dict[str, Any]:
    """Leave out what is beside Parquet files; a split is then what a name below the folder begins with."""
    parts: dict[str, list[str]] = {}
    listed = sorted(files_below(folder))
    if all(file.endswith(".parquet") for file in listed):
        return {"path": "parquet", "data_dir": str(folder)}
    for file in listed:
        if file.endswith(".parquet"):
            names = os.path.relpath(file, folder).split(os.sep)
            found = next(filter(None, map(SPLIT.match, names)), None)
            split = found[1] if found else ""
            parts.setdefault("validation" if split == "val" else split, []).append(file)
    if parts.keys() > {""}:
        raise ValueError(f"{parts[''][0]} is of no split, others are: begin its name with train, or move it")
    return {"path": "parquet", "data_files": {split or "train": files for split, files in parts.items()}}


def _load(data: str, split: str, source: dict[str, Any]) -> Any:
    import datasets

    with _one_sentence(data, split):
        return datasets.load_dataset(**source, split=split)


def _list_parquet(data: str, split: str, source: dict[str, Any]) -> list[str]:
    """List the Parquet files of a split, as ``datasets`` tells them apart."""
    import datasets

    with _one_sentence(data, split):
        files = datasets.load_dataset_builder(**source).config.data_files or {}
        if split not in files:
            raise ValueError(f"there are {', '.join(map(str, files)) or 'no files'}")
    other = next((file for file in files[split] if not file.endswith(".parquet")), None)
    if other:
        raise ValueError(f"{data} keeps its images in files like {other}: only Parquet files can be streamed")
    return list(files[split])


@contextlib.contextmanager
def _one_sentence(data: str, split: str) -> Iterator[None]:
    import datasets

    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{data}, split {split!r}, could not be loaded: {reason}") from None

"""Tables of encoded images, by ``datasets``: Parquet files and data sets of the Hugging Face Hub."""

import contextlib
import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from slotcon_hub.images import SUFFIXES, files_below, names_digest, pixel_limit, printable

__all__ = ["ImageTable", "find_source", "list_parquet", "load_table", "split_of"]

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORDS = {word: split for split, words in SPLITS.items() for word in words}
_WORD = "|".join(_WORDS)
_NAMED = re.compile(rf"({_WORD})(?:[-_.]?\d.*|\.\w+)?|(?:.+-)?({_WORD})-\d+-of-\d+.*")
_OF_THE_HUB = re.compile(r"data/(\w+)-\d{5}-of-\d{5}.*")


class ImageTable:
    """The image column of a ``datasets`` table, left encoded."""

    def __init__(self, table: Any, column: str) -> None:
        """Select the image column.

        Raises:
            ValueError: there is no such column of images, or no row.
        """
        import datasets

        pixel_limit()
        names = [name for name in table.column_names if name != column]
        others = f"give --image-column one of {', '.join(names)}" if names else "give --data another"
        if column not in table.column_names:
            raise ValueError(f"there is no column {column!r}: {others}")
        if not len(table):
            raise ValueError("the data set has no rows: give --data another")
        self.column = column
        try:
            self.table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError):
            raise ValueError(f"column {column!r} holds no images: {others}") from None
        self._reject_text(others)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.table)

    def name(self, index: int) -> str:
        """Row number, and the path if the table has one."""
        path = self._image(index).get("path")
        return f"row {index}" + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        """Read the encoded bytes of an image, from its file if the table only has its path."""
        image = self._image(index)
        if image.get("bytes"):
            return image["bytes"]
        if image.get("path"):
            return Path(image["path"]).read_bytes()
        raise OSError(f"row {index} is empty")

    def digest(self) -> str:
        """SHA-256 over file names and byte counts of the images, where the table has them."""
        import pyarrow.compute as pc

        images = self.table.with_format("arrow")[:].column(self.column)
        paths, sizes = pc.struct_field(images, "path"), pc.binary_length(pc.struct_field(images, "bytes"))
        rows = (
            f"{size} {os.path.basename(path or '')}"
            for path, size in zip(paths.to_pylist(), sizes.to_pylist(), strict=True)
        )
        return names_digest(rows)

    def _image(self, index: int) -> dict[str, Any]:
        return self.table[index][self.column] or {}

    def _reject_text(self, others: str, rows: int = 100) -> None:
        """Reject a column of text if none of its first rows is the path of a file."""
        first = [image or {} for image in self.table[:rows][self.column]]
        texts = [image["path"] for image in first if image.get("path") and not image.get("bytes")]
        if texts and not any(image.get("bytes") for image in first) and not any(map(os.path.isfile, texts)):
            text = texts[0] if len(texts[0]) < 60 else f"{texts[0][:57]}..."
            raise ValueError(
                f"column {self.column!r} holds text that is not the path of a local file ({text!r}), not images: "
                f"download or decode them first, or {others}"
            )


def split_of(path: str) -> str | None:
    """Return the split of a Parquet file by its path relative to the data set; None if the path names no split.

    A split is named by

    - a folder: ``train/0000.parquet``, ``data/val/a.parquet``;
    - a file name, with or without numbers: ``train.parquet``, ``validation_2.parquet``,
      ``train-00000-of-00002.parquet``, or with the data set's name first: ``mnist-train-00000-of-00002.parquet``;
    - any word before the numbers in a folder ``data``, as on the Hub: ``data/unlabeled-00000-of-00002.parquet``.

    Part of a longer name does not count: ``bullet_train.parquet``, ``train_station.parquet``. The words are train
    and training; validation, valid, val and dev; test, testing, eval and evaluation.
    """
    *folders, name = path.removesuffix(".parquet").split(os.sep)
    for folder in folders:
        if folder in _WORDS:
            return _WORDS[folder]
    if found := _NAMED.fullmatch(name):
        return _WORDS[found[1] or found[2]]
    found = _OF_THE_HUB.fullmatch("/".join((*folders, name)))
    return found[1] if found else None


def find_source(data: str, files: Sequence[str] | None = None) -> tuple[dict[str, Any], bool]:
    """Find the table of ``--data``.

    Args:
        data: a data set of the Hub, ``hf:NAME`` or ``hf:NAME:CONFIGURATION``; the path of a Parquet file; a URL of
            Parquet files; or a folder with Parquet files and no images.
        files: the files of the folder, if already listed.

    Returns:
        Arguments of ``datasets.load_dataset``, and whether the table has splits.

    Raises:
        ValueError: there is no table, or there are images beside the Parquet files.
    """
    if data.startswith("hf:"):
        name, _, configuration = data.removeprefix("hf:").partition(":")
        if not name:
            raise ValueError("hf: must be followed by the name of a data set: give --data hf:<owner>/<name>")
        return {"path": name, "name": configuration or None}, True
    if "://" in data:
        return {"path": "parquet", "data_files": data}, False
    path = Path(data).expanduser()
    if path.suffix == ".parquet" and not path.is_dir():
        if not path.is_file():
            raise ValueError(f"there is no file {path}: give --data a Parquet file or a folder")
        return {"path": "parquet", "data_files": glob.escape(str(path))}, False
    return {"path": "parquet", "data_files": _group_by_split(path, files or list(files_below(path)))}, True


def _group_by_split(folder: Path, listed: Sequence[str]) -> dict[str, list[str]]:
    """Group the Parquet files of a folder by split; all are train if none names a split."""
    files = sorted(file for file in listed if file.endswith(".parquet"))
    images = sum(file.lower().endswith(SUFFIXES) for file in listed)
    if images:
        raise ValueError(
            f"{folder} holds {images} images beside {len(files)} Parquet files, and only one kind can be used: "
            "give --data a folder of only images or only Parquet files"
        )
    parts: dict[str | None, list[str]] = {}
    for file in files:
        parts.setdefault(split_of(os.path.relpath(file, folder)), []).append(file)
    if parts.keys() == {None}:
        _reject_unclear_splits(folder, files)
        parts = {"train": files}
    if left := parts.pop(None, None):
        note = f"note: skipped {len(left)} of {len(files)} Parquet files that name no split, the first is "
        note += f"{printable(left[0])}: to use it, rename it to train-0... or move it into a folder train"
        if PartialState().is_main_process:
            print(note, file=sys.stderr)
    return {str(split): [glob.escape(file) for file in files] for split, files in parts.items()}


def _reject_unclear_splits(folder: Path, files: list[str]) -> None:
    """Reject names such as train_images and val_images: training would use both."""
    parts = (part for file in files for part in re.split(r"[-_./ ]", os.path.relpath(file, folder)))
    words = {_WORDS[part] for part in parts if part in _WORDS}
    if len(words) > 1:
        raise ValueError(
            f"names of Parquet files in {folder} hold {' and '.join(sorted(words))}, but begin with none of them: "
            "move the files into folders of these names, or give --data a single file"
        )


def load_table(data: str, split: str, source: tuple[dict[str, Any], bool] | None = None) -> Any:
    """Load a split of the table of ``--data``; ``source`` is the result of :func:`find_source`, if already known.

    Raises:
        ValueError: it cannot be loaded.
    """
    import datasets

    wanted, is_split = source or find_source(data)
    split = split if is_split else "train"
    with _shorten_errors(data, split):
        return datasets.load_dataset(**wanted, split=split)


def list_parquet(data: str, split: str, source: tuple[dict[str, Any], bool]) -> list[str]:
    """List the Parquet files of a split, by the rules of ``datasets``.

    Raises:
        ValueError: there is no such split, or it has files of another format.
    """
    import datasets

    wanted, is_split = source
    split = split if is_split else "train"
    with _shorten_errors(data, split):
        files = datasets.load_dataset_builder(**wanted).config.data_files or {}
        if split not in files:
            raise ValueError(f"there are {', '.join(map(str, files)) or 'no files'}")
    other = next((file for file in files[split] if not file.endswith(".parquet")), None)
    if other:
        raise ValueError(f"{data} keeps its images in files like {other}: only Parquet files can be streamed")
    return list(files[split])


@contextlib.contextmanager
def _shorten_errors(data: str, split: str) -> Iterator[None]:
    import datasets

    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        if data.startswith("hf:") and reason.startswith("Config name is missing"):
            reason += f" Name it after a colon: --data {data}:<configuration>"
        raise ValueError(f"{data}, split {split!r}, could not be loaded: {reason}") from None

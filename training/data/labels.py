"""Labelled images: class folders, and tables with a label column."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slotcon_hub.images import ImageFiles, files_below, list_folder, printable
from training.data.images import Images
from training.data.tables import ImageTable, load_table

__all__ = ["LabeledFiles", "draw_share", "open_labeled"]

FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


@dataclass(frozen=True)
class LabeledFiles:
    """Encoded images and their labels."""

    images: Images
    labels: list[int]
    """Class index of each image."""
    classes: list[str]
    """Class names, with unprintable characters escaped."""


def open_labeled(data: str, split: str, image_column: str = "image", label_column: str = "label") -> LabeledFiles:
    """Open a split of labelled images, and check its labels before any image is read.

    Args:
        data: a folder of class folders, optionally inside split folders; a folder of Parquet files; or ``hf:NAME``.
        split: "train", "validation" (its folder may be ``val``), "test", or the name of another folder.
        image_column: of a table.
        label_column: of a table: integers from 0, or text or booleans, numbered in sorted order.

    Raises:
        ValueError: there is no such split, an image has no class, or a column has no images or labels.
    """
    path = Path(data).expanduser()
    if data.startswith("hf:"):
        return _open_table(data, split, image_column, label_column)
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}: give class folders, Parquet files, or hf:<name>")
    folders = {name: path / name for names in FOLDERS.values() for name in names if (path / name).is_dir()}
    root = next((path / name for name in FOLDERS.get(split, (split,)) if (path / name).is_dir()), path)
    files = list(files_below(root))
    if any(file.endswith(".parquet") for file in files):
        return _open_table(data, split, image_column, label_column)
    if root == path and (folders or split != "train"):
        there = ", ".join(folders) or "none"
        raise ValueError(f"{path} has no folder for the split {split!r} (there are: {there}): name another split")
    images = ImageFiles(root, listed=files)
    classes = (inner for folder in folders.values() for inner in list_folder(folder)[0])
    return LabeledFiles(
        images, *_number_classes([_class_of(file, root) for file in images.paths], map(_class_name, classes))
    )


def draw_share(labels: Sequence[int], share: float) -> list[int]:
    """Draw indices of a share of each class's images, at least one of each, the same at every call.

    Args:
        labels: class index of each image.
        share: in (0, 1].

    Raises:
        ValueError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"--share {share} must be a fraction in (0, 1]")
    order, classes = np.random.default_rng(0).permutation(len(labels)), np.asarray(labels)
    parts = (order[classes[order] == label] for label in np.unique(classes))
    return sorted(int(i) for part in parts for i in part[: max(1, round(share * len(part)))])


def _number_classes(names: list[str], others: Iterable[str] = ()) -> tuple[list[int], list[str]]:
    """Return class indices and sorted classes of text labels; ``others`` are classes without images."""
    classes = sorted({*names, *others})
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[name] for name in names], classes


def _class_of(file: str, root: Path) -> str:
    first, *rest = file.removeprefix(os.path.join(root, "")).split(os.sep)
    if not rest:
        where = f"a folder in {printable(root)} that is named after its class"
        raise ValueError(f"{printable(file)} has no class: put it into {where}")
    return printable(first)


def _class_name(folder: str) -> str:
    return printable(os.path.basename(folder))


def _open_table(data: str, split: str, image_column: str, label_column: str) -> LabeledFiles:
    import datasets

    table = load_table(data, split)
    where = f"{data}, split {split!r}, column {label_column!r}"
    if label_column not in table.column_names:
        raise ValueError(f"{where} does not exist: give --label-column one of {', '.join(table.column_names)}")
    images = ImageTable(table, image_column)
    feature = table.features[label_column]
    values: list[Any] = table.with_format("arrow")[:].column(label_column).to_pylist()
    if any(value is None for value in values):
        raise ValueError(f"{where}: row {values.index(None)} has no label: remove such rows")
    kinds = {type(value) for value in values}
    if kinds in ({str}, {bool}):
        return LabeledFiles(images, *_number_classes(list(map(str, values))))
    if kinds != {int}:
        raise ValueError(f"{where}: labels must be integers, text or booleans, not {feature}")
    if min(values) < 0:
        raise ValueError(f"{where}: row {values.index(min(values))} has label {min(values)}: number classes from 0")
    if isinstance(feature, datasets.ClassLabel):
        return LabeledFiles(images, values, list(feature.names))
    if max(values) >= 10 * len(set(values)) + 1000:
        raise ValueError(f"{where}: label {max(values)} among {len(set(values))} classes: number classes from 0")
    return LabeledFiles(images, values, [str(number) for number in range(max(values) + 1)])

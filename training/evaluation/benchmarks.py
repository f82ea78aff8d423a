"""Data for segmentation: COCO-Stuff-27, the demo's scenes, or any folder of images and masks."""

import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.data import scenes
from training.data.masks import IGNORE, CenterSquare, LabeledImages

__all__ = ["COCO_STUFF", "Benchmark", "coco_stuff", "coco_stuff_classes", "curated", "open_benchmark", "read_names"]

COCO_STUFF, SCENES = "coco-stuff:", "scenes"
FACTS = Path(__file__).parent / "data"
IMAGES = ("{split}", "images/{split}")
MAPS = ("stuffthingmaps/{split}", "annotations/{split}", "annotations/stuffthingmaps/{split}")


@dataclass(frozen=True)
class Benchmark:
    """Labelled images and their classes."""

    images: LabeledImages
    size: int | None
    """Side of the centre crop in pixels; None for whole images."""
    classes: tuple[str, ...] | None = None
    """Class names; None: the classes in the masks."""
    kinds: dict[str, Sequence[int]] = field(default_factory=dict)
    """Subsets of the classes that are also measured separately, such as things and stuff."""
    palette: np.ndarray | None = None
    """Class colours, uint8 C x 3."""
    listed: int | None = None
    """Number of images that the protocol lists, if it does."""
    missing: tuple[str, ...] = ()
    """Listed images that were not found."""


def open_benchmark(data: str, *, masks: Path | None, names: Path | None, split: str, size: int | None) -> Benchmark:
    """Open the data of ``--data``.

    Args:
        data: "scenes", "coco-stuff:FOLDER", or a folder of images.
        masks: folder of masks, for a folder of images.
        names: file of class names, one per line, for a folder of images.
        split: "val" or "train", of COCO.
        size: side of the centre crop; None: 320 for COCO, whole images for other data.

    Raises:
        ValueError: the data cannot be opened.
    """
    is_folder = data != SCENES and not data.startswith(COCO_STUFF)
    if is_folder == (masks is None):
        raise ValueError("--masks and --data FOLDER belong together: give both, or neither")
    if names and not is_folder:
        raise ValueError("--classes is only for --data FOLDER: leave it out, this data set has its own classes")
    if data == SCENES:
        return _scenes(size)
    if data.startswith(COCO_STUFF):
        return coco_stuff(Path(data.removeprefix(COCO_STUFF)).expanduser(), split, size or 320)
    assert masks is not None
    return _folder(Path(data).expanduser(), masks, names, size)


def read_names(file: Path) -> tuple[str, ...]:
    """Read class names, one per line.

    Raises:
        ValueError: there are no names, or more than 255.
    """
    classes = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    if not 0 < len(classes) <= IGNORE:
        raise ValueError(f"{file} has {len(classes)} names: give 1 to {IGNORE}, one per line")
    return classes


def _square(size: int | None) -> CenterSquare | None:
    return CenterSquare(size) if size else None


def _scenes(size: int | None) -> Benchmark:
    held_out = scenes.prepare(train=1)  # the minimum: only the held-out scenes are used
    labels = {i: i for i in range(len(scenes.CLASSES))}
    images = LabeledImages(held_out.val_images, held_out.val_masks, labels=labels, transform=_square(size))
    return Benchmark(images, size, scenes.CLASSES, palette=scenes.PALETTE)


def _folder(images: Path, masks: Path, names: Path | None, size: int | None) -> Benchmark:
    if not masks.is_dir():
        raise ValueError(f"there is no folder {masks} for --masks: give an existing one")
    classes, labels = None, None
    if names:
        classes = read_names(names)
        labels = {i: i for i in range(len(classes))}
    return Benchmark(LabeledImages(images, masks, labels=labels, transform=_square(size)), size, classes)


def coco_stuff_classes() -> tuple[tuple[str, ...], dict[str, Sequence[int]], dict[int, int]]:
    """Return the names of the 27 classes, the indices of things and stuff, and the class of each label 0 to 181."""
    facts = json.loads((FACTS / "cocostuff27.json").read_text())["classes"]
    kinds: dict[str, Sequence[int]] = {
        plural: [i for i, one in enumerate(facts) if one["kind"] == kind]
        for kind, plural in (("thing", "things"), ("stuff", "stuff"))
    }
    labels = {int(label): i for i, one in enumerate(facts) for label in one["labels"]}
    return tuple(one["name"] for one in facts), kinds, labels


def curated(split: str) -> list[str]:
    """Return the names, without suffix, of the images of COCO's "val" or "train" that COCO-Stuff-27 lists."""
    with lzma.open(FACTS / f"cocostuff27_{split}.txt.xz", "rt") as lines:
        return lines.read().split()


def coco_stuff(root: Path, split: str = "val", size: int = 320) -> Benchmark:
    """Open COCO-Stuff-27: those of the listed images that exist.

    Args:
        root: of COCO: ``val2017/*.jpg``, and ``stuffthingmaps/val2017/*.png`` or ``annotations/val2017/*.png``.
        split: "val" or "train".
        size: side of the centre crop in pixels, 320 in the protocol.

    Raises:
        ValueError: a folder is missing, or all images are.
    """
    folder, maps = (_first_of(root, places, f"{split}2017") for places in (IMAGES, MAPS))
    names = curated(split)
    there = {path.stem for path in folder.glob("*.jpg")} & {path.stem for path in maps.glob("*.png")}
    found = [name for name in names if name in there]
    if not found:
        raise ValueError(
            f"none of the {len(names):,} listed images is in {folder} with its mask in {maps}: add images and masks"
        )
    classes, kinds, labels = coco_stuff_classes()
    images = LabeledImages(folder, maps, names=found, labels=labels, transform=CenterSquare(size))
    missing = tuple(name for name in names if name not in there)
    return Benchmark(images, size, classes, kinds, listed=len(names), missing=missing)


def _first_of(root: Path, places: Sequence[str], split: str) -> Path:
    folders = [root / place.format(split=split) for place in places]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise ValueError(f"there is no folder {' or '.join(map(str, folders))}: create one of them")

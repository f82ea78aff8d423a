"""What can be segmented and measured: COCO-Stuff-27, the embedded scenes, or any folder of images and masks."""

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
    """Labelled images, and what their labels mean."""

    images: LabeledImages
    size: int | None
    """Side of the centre square that an image is cut to, in pixels; None for whole images."""
    classes: tuple[str, ...] | None = None
    """Their names; None for as many as the masks show."""
    kinds: dict[str, Sequence[int]] = field(default_factory=dict)
    """Parts of the classes that are measured for themselves too, such as things and stuff."""
    palette: np.ndarray | None = None
    """Colours of the classes, uint8 C x 3."""
    listed: int | None = None
    """How many images the protocol names; None where it names none."""
    missing: tuple[str, ...] = ()
    """Those of them that were not found."""


def open_benchmark(data: str, *, masks: Path | None, names: Path | None, split: str, size: int | None) -> Benchmark:
    """Open what ``--data`` names.

    Args:
        data: "scenes", "coco-stuff:" and the folder of COCO, or a folder of images.
        masks: folder of masks, for a folder of images.
        names: file of class names, one a line, for a folder of images.
        split: "val" or "train", of COCO.
        size: side of the centre square; None takes 320 for COCO and whole images elsewhere.

    Raises:
        ValueError: it cannot be opened, in one sentence.
    """
    is_folder = data != SCENES and not data.startswith(COCO_STUFF)
    if is_folder == (masks is None):
        raise ValueError("--masks names the masks of a folder of images: give it with --data FOLDER, and only then")
    if names and not is_folder:
        raise ValueError("--classes names the classes of a folder of images, the other data have their own")
    if data == SCENES:
        return _scenes(size)
    if data.startswith(COCO_STUFF):
        return coco_stuff(Path(data.removeprefix(COCO_STUFF)).expanduser(), split, size or 320)
    assert masks is not None
    return _folder(Path(data).expanduser(), masks, names, size)


def read_names(file: Path) -> tuple[str, ...]:
    """Read the names of classes, one a line.

    Raises:
        ValueError: there are none, or more than a mask can number.
    """
    classes = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    if not 0 < len(classes) <= IGNORE:
        raise ValueError(f"{file} has {len(classes)} names: one a line, 1 to {IGNORE} of them")
    return classes


def _square(size: int | None) -> CenterSquare | None:
    return CenterSquare(size) if size else None


def _scenes(size: int | None) -> Benchmark:
    """The held-out part of the embedded scenes; of the training part one is drawn, since it takes one."""
    held_out = scenes.prepare(train=1)
    labels = {i: i for i in range(len(scenes.CLASSES))}
    images = LabeledImages(held_out.val_images, held_out.val_masks, labels=labels, transform=_square(size))
    return Benchmark(images, size, scenes.CLASSES, palette=scenes.PALETTE)


def _folder(images: Path, masks: Path, names: Path | None, size: int | None) -> Benchmark:
    if not masks.is_dir():
        raise ValueError(f"there is no folder {masks} for --masks")
    classes, labels = None, None
    if names:
        classes = read_names(names)
        labels = {i: i for i in range(len(classes))}
    return Benchmark(LabeledImages(images, masks, labels=labels, transform=_square(size)), size, classes)


def coco_stuff_classes() -> tuple[tuple[str, ...], dict[str, Sequence[int]], dict[int, int]]:
    """Names of the 27 classes, which of them are things and stuff, and the class of each label 0 to 181."""
    facts = json.loads((FACTS / "cocostuff27.json").read_text())["classes"]
    kinds: dict[str, Sequence[int]] = {
        plural: [i for i, one in enumerate(facts) if one["kind"] == kind]
        for kind, plural in (("thing", "things"), ("stuff", "stuff"))
    }
    labels = {int(label): i for i, one in enumerate(facts) for label in one["labels"]}
    return tuple(one["name"] for one in facts), kinds, labels


def curated(split: str) -> list[str]:
    """Names of the images of COCO's "val" or "train" that COCO-Stuff-27 is measured on, without ending."""
    with lzma.open(FACTS / f"cocostuff27_{split}.txt.xz", "rt") as lines:
        return lines.read().split()


def coco_stuff(root: Path, split: str = "val", size: int = 320) -> Benchmark:
    """COCO-Stuff-27: the curated images that are there, with the maps of things and stuff.

    Args:
        root: of COCO: ``val2017/*.jpg``, and ``stuffthingmaps/val2017/*.png`` or ``annotations/val2017/*.png``.
        split: "val" or "train".
        size: of the centre square in pixels, 320 in the protocol.

    Raises:
        ValueError: a folder is missing, or all of the images are.
    """
    folder, maps = (_first_of(root, places, f"{split}2017") for places in (IMAGES, MAPS))
    names = curated(split)
    there = {path.stem for path in folder.glob("*.jpg")} & {path.stem for path in maps.glob("*.png")}
    found = [name for name in names if name in there]
    if not found:
        raise ValueError(f"none of the {len(names):,} listed images is in {folder} with its map in {maps}")
    classes, kinds, labels = coco_stuff_classes()
    images = LabeledImages(folder, maps, names=found, labels=labels, transform=CenterSquare(size))
    missing = tuple(name for name in names if name not in there)
    return Benchmark(images, size, classes, kinds, listed=len(names), missing=missing)


def _first_of(root: Path, places: Sequence[str], split: str) -> Path:
    folders = [root / place.format(split=split) for place in places]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise ValueError(f"there is no folder {', nor '.join(map(str, folders))}")

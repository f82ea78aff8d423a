"""VOC 2012, Cityscapes and ADE20K in their published layouts, or any folders of images and masks."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.masks import IGNORE, LabeledImages

__all__ = ["SegmentationData", "open_data"]

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC_TRAIN, VOC_TRAIN_AUG, VOC_VAL = 1_464, 10_582, 1_449

CITYSCAPES_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car",
    27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Keys are the labels of ``labelIds.png``; those of ``labelTrainIds.png`` are 0 to 18 in this order."""
CITYSCAPES_COUNTS = {"train": 2_975, "val": 500}

ADE20K_CLASSES = 150
ADE20K_COUNTS = {"training": 20_210, "validation": 2_000}

SPLITS = {"train": re.compile(r"train(ing)?\d*"), "val": re.compile(r"val(idation)?\d*")}

Pairs = list[tuple[Path, Path]]


@dataclass(frozen=True)
class SegmentationData:
    """Training and validation images with masks."""

    train: LabeledImages
    val: LabeledImages
    classes: tuple[str, ...]
    """Class names."""
    notes: tuple[str, ...] = ()
    """Warnings, a sentence each."""


def open_data(recipe: str, data: Path, masks: Path | None = None, classes: Path | None = None) -> SegmentationData:
    """Open the data set of a recipe, or any folders of images and masks.

    Args:
        recipe: "voc", "cityscapes" or "ade20k".
        data: folder of the data set; with ``masks``, a folder of images.
        masks: folder of PNG masks at the same relative paths as their images; ``data`` and ``masks`` each have a
            train and a val folder.
        classes: text file of class names, one per line; None: ``classes.txt`` in ``masks``.

    Raises:
        ValueError: a folder, image or mask is missing.
    """
    if not data.is_dir():
        raise ValueError(f"there is no folder {data}: give --data the folder of the data set")
    if masks is not None:
        return _open_folders(data, masks, classes or masks / "classes.txt")
    if classes is not None:
        raise ValueError("--classes needs --masks: give both, or neither")
    return {"voc": _open_voc, "cityscapes": _open_cityscapes, "ade20k": _open_ade20k}[recipe](data)


def _open_voc(data: Path) -> SegmentationData:
    """Train on train_aug if SBD's masks exist: VOC's train and all of SBD, without VOC's val."""
    root = _find_root(data, ("", "VOC2012", "VOCdevkit/VOC2012"), ("JPEGImages", "SegmentationClass"), "VOC 2012")
    own, augmented = root / "SegmentationClass", root / "SegmentationClassAug"
    train, val = (_read_names(root / "ImageSets" / "Segmentation" / f"{split}.txt") for split in ("train", "val"))
    notes: list[str] = []
    masks = {name: own / f"{name}.png" for name in train}
    if augmented.is_dir():
        beside = {file.stem: file for file in augmented.glob("*.png")}
        masks = {name: file for name, file in {**beside, **masks}.items() if name not in set(val)}
    else:
        notes.append(
            f"{root} has no SegmentationClassAug (masks of SBD): training on the {len(masks):,} images of VOC 2012 "
            f"train, while the paper uses the {VOC_TRAIN_AUG:,} of train_aug"
        )
    expected = VOC_TRAIN_AUG if augmented.is_dir() else VOC_TRAIN
    sets = [
        _check_files([(root / "JPEGImages" / f"{name}.jpg", mask) for name, mask in sorted(files.items())])
        for files in (masks, {name: own / f"{name}.png" for name in val})
    ]
    title = "VOC 2012 train_aug" if augmented.is_dir() else "VOC 2012 train"
    notes += [*_check_count(title, sets[0], expected, root), *_check_count("VOC 2012 val", sets[1], VOC_VAL, root)]
    labels = {label: label for label in range(len(VOC_CLASSES))}
    return _make_data(sets, VOC_CLASSES, notes, labels)


def _open_cityscapes(data: Path) -> SegmentationData:
    root = _find_root(data, ("", "cityscapes"), ("leftImg8bit", "gtFine"), "Cityscapes")
    image_end, train_ids, label_ids = "_leftImg8bit.png", "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
    converted = any((root / "gtFine").glob(f"*/*/*{train_ids}"))
    mask_end, labels = train_ids, {train_id: train_id for train_id in range(len(CITYSCAPES_CLASSES))}
    if not converted:
        mask_end = label_ids
        labels = {label: IGNORE for label in range(34)}
        labels |= {label: train_id for train_id, label in enumerate(CITYSCAPES_CLASSES)}
    sets, notes = [], list[str]()
    for split, count in CITYSCAPES_COUNTS.items():
        images = sorted((root / "leftImg8bit" / split).glob(f"*/*{image_end}"))
        names = [f"{image.parent.name}/{image.name.removesuffix(image_end)}" for image in images]
        masks = [root / "gtFine" / split / f"{name}{mask_end}" for name in names]
        sets.append(_check_files(list(zip(images, masks, strict=True))))
        notes += _check_count(f"Cityscapes {split}", sets[-1], count, root / "leftImg8bit" / split)
    return _make_data(sets, CITYSCAPES_CLASSES.values(), notes, labels)


def _open_ade20k(data: Path) -> SegmentationData:
    """Label 0 means no class; classes are 1 to 150."""
    root = _find_root(data, ("", "ADEChallengeData2016"), ("images", "annotations"), "ADE20K")
    sets, notes = [], list[str]()
    for split, count in ADE20K_COUNTS.items():
        images = sorted((root / "images" / split).glob("*.jpg"))
        sets.append(_check_files([(image, root / "annotations" / split / f"{image.stem}.png") for image in images]))
        notes += _check_count(f"ADE20K {split}", sets[-1], count, root / "images" / split)
    labels = {0: IGNORE, **{label + 1: label for label in range(ADE20K_CLASSES)}}
    table = root / "objectInfo150.txt"
    lines = table.read_text().splitlines()[1:] if table.is_file() else []
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
    if len(names) != ADE20K_CLASSES:
        names = [f"class {number}" for number in range(1, ADE20K_CLASSES + 1)]
    return _make_data(sets, names, notes, labels)


def _open_folders(images: Path, masks: Path, classes: Path) -> SegmentationData:
    if not masks.is_dir():
        raise ValueError(f"there is no folder {masks}: give --masks a folder with the masks of train and val")
    if not classes.is_file():
        raise ValueError(f"there is no file {classes}: give class names, one per line, by --classes FILE")
    names = [line.strip() for line in classes.read_text().splitlines() if line.strip()]
    if not 0 < len(names) < IGNORE:
        raise ValueError(f"{classes} has {len(names)} names: give 1 to {IGNORE - 1}, one per line")
    labels = {label: label for label in range(len(names))}
    parts = [LabeledImages(*(_find_split(place, split) for place in (images, masks))).files for split in SPLITS]
    return _make_data(parts, names, (), labels)


def _make_data(
    sets: Sequence[Pairs], names: Iterable[str], notes: Iterable[str], labels: dict[int, int]
) -> SegmentationData:
    train, val = (LabeledImages.of(files, labels) for files in sets)
    return SegmentationData(train, val, tuple(names), tuple(notes))


def _find_root(data: Path, places: Sequence[str], parts: Sequence[str], title: str) -> Path:
    """Find the root of the data set, which has all ``parts``, at one of the ``places`` in ``data``."""
    roots = [data / place for place in places]
    best = max(roots, key=lambda root: sum((root / part).is_dir() for part in parts))
    if missing := [part for part in parts if not (best / part).is_dir()]:
        raise ValueError(
            f"{best} holds no {' and no '.join(missing)}, needed for {title}: give --data the folder of {title}, "
            "or also --masks for other images"
        )
    return best


def _read_names(file: Path) -> list[str]:
    if not file.is_file():
        raise ValueError(f"{file} of VOC 2012 is missing: complete the data set")
    return file.read_text().split()


def _check_files(files: Pairs) -> Pairs:
    """Return the pairs if all files exist."""
    if missing := [file for pair in files for file in pair if not file.is_file()]:
        raise ValueError(
            f"{len(missing):,} of {2 * len(files):,} images and masks are missing, the first is {missing[0]}: "
            "complete the data set"
        )
    return files


def _check_count(title: str, files: Pairs, expected: int, place: Path) -> Iterator[str]:
    if not files:
        raise ValueError(f"{title} has {expected:,} images, none was found in {place}: complete the data set")
    if len(files) != expected:
        yield f"{title} has {expected:,} images, {len(files):,} were found in {place}: check that it is complete"


def _find_split(folder: Path, split: str) -> Path:
    found = sorted(part for part in folder.iterdir() if part.is_dir() and SPLITS[split].fullmatch(part.name))
    if len(found) != 1:
        names = " and ".join(part.name for part in found) or "none"
        raise ValueError(
            f"{folder} must hold one folder for {split}, such as {split} or {split}2017, but there is {names}: "
            "create or link exactly one"
        )
    return found[0]

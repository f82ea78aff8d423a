"""Data sets in COCO's format: a folder of images and a JSON file of their instances.

Valid files are read as Detectron2 does; invalid entries are errors that name the image and annotation.
"""

import json
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask

from slotcon_hub.images import EncodedImage, printable

__all__ = ["CocoImages", "Instance", "Record", "find_coco", "rasterize"]

_SPLITS = {"train": ("train2017", "train"), "val": ("val2017", "val", "valid", "validation", "test")}


@dataclass(frozen=True)
class Instance:
    """An annotated object, or a crowd of them.

    Attributes:
        label: class index, from 0.
        box: left, top, right, bottom in pixels.
        polygons: each x0, y0, x1, y1, ... in pixels; empty if ``rle`` is given.
        rle: COCO's compressed run-length encoding of the mask.
        crowd: a group of objects, ignored in training and evaluation.
        area: of the mask in pixels, from the file if it has one.
    """

    label: int
    box: tuple[float, float, float, float]
    polygons: list[np.ndarray]
    rle: dict[str, Any] | None
    crowd: bool
    area: float

    def bitmap(self, height: int, width: int) -> np.ndarray:
        """Rasterize the mask: uint8 H x W of the image."""
        return coco_mask.decode(self.rle) if self.rle else rasterize(self.polygons, height, width)


@dataclass(frozen=True)
class Record:
    """An image and its instances."""

    id: int
    path: Path
    height: int
    width: int
    instances: list[Instance]


def rasterize(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Rasterize an object's polygons by COCO's rule: uint8 H x W."""
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(list(polygons), height, width)))


def find_coco(root: Path, split: str) -> tuple[Path, list[Path]]:
    """Find the JSON file and the image folders of a split, in COCO's layout or a common variant.

    Args:
        root: has ``annotations/instances_train2017.json`` and ``train2017``, or both without the year, or a folder
            per split with images and ``_annotations.coco.json``.
        split: "train" or "val".

    Returns:
        The JSON file, and the candidate folders for its ``file_name`` entries.

    Raises:
        ValueError: there is no JSON file.
    """
    tried = []
    for name in _SPLITS[split]:
        files = [root / "annotations" / f"{prefix}{name}.json" for prefix in ("instances_", "")]
        files += [root / name / "_annotations.coco.json", root / f"{name}.json"]
        for file in files:
            if file.is_file():
                return file, [root / name, root / "images" / name, root / "images", root]
        tried += files[:3:2]
    names = " or ".join(str(file.relative_to(root)) for file in tried[:4])
    raise ValueError(f"{root} has no annotations of its {split} images: add {names}")


class CocoImages:
    """The records of a JSON file, sorted by image id.

    Records are stored pickled in one array: reference counts of Python objects would make each forked worker copy
    them.

    Attributes:
        classes: class names by label.
        category_ids: category ids by label.
        sizes: int N x 2, height and width of each image.
        learnable: bool N, whether the image has an object that is not a crowd.
        dropped: number of objects skipped because their polygons have fewer than three corners.
    """

    def __init__(self, annotations: Path, folders: Sequence[Path]) -> None:
        """Read the JSON file, and check that all images exist.

        Args:
            annotations: the JSON file.
            folders: candidates for the folder of its ``file_name`` entries.

        Raises:
            ValueError: an image or entry is missing or invalid.
        """
        self.annotations = annotations
        content = _read(annotations)
        names = [str(image.get("file_name")) for image in content["images"][:1]]
        self.folder = next((f for f in folders if any((f / name).is_file() for name in names)), folders[0])
        self.dropped = 0
        try:
            self.categories = _categories(content, annotations)
            self.classes = tuple(str(c.get("name", c["id"])) for c in self.categories)
            self.category_ids = tuple(int(c["id"]) for c in self.categories)
            records = list(self._records(content))
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else f"has a wrong type ({error})"
            raise ValueError(f"{annotations} is not in COCO's format: an entry {reason}") from None
        self._check_files(records)
        self.sizes = np.array([(r.height, r.width) for r in records]).reshape(-1, 2)
        self.learnable = np.array([any(not i.crowd for i in r.instances) for r in records], dtype=bool)
        packed = [pickle.dumps(record) for record in records]
        self._ends = np.cumsum([0, *map(len, packed)])
        self._packed = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        """Number of images, with and without objects."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Record:
        return pickle.loads(self._packed[self._ends[index] : self._ends[index + 1]].tobytes())  # pickled above

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def _records(self, content: dict[str, Any]) -> Iterator[Record]:
        labels = {category: label for label, category in enumerate(self.category_ids)}
        objects: dict[int, list[dict[str, Any]]] = {}
        for annotation in content.get("annotations", []):
            objects.setdefault(annotation.get("image_id"), []).append(annotation)
        seen = set()
        for image in sorted(content["images"], key=lambda image: image["id"]):
            where = f"{self.annotations}: image {image['id']}"
            if image["id"] in seen:
                raise ValueError(f"{where} is listed twice: give each image a unique id")
            seen.add(image["id"])
            if not image.get("file_name"):
                raise ValueError(f"{where} has no file_name: name its file in {self.folder}")
            path = self.folder / image["file_name"]
            height, width = self._read_size(image, path)
            found = [_instance(a, labels, height, width, where) for a in objects.get(image["id"], [])]
            kept = [instance for instance in found if instance is not None]
            self.dropped += len(found) - len(kept)
            yield Record(image["id"], path, height, width, kept)

    def _read_size(self, image: dict[str, Any], path: Path) -> tuple[int, int]:
        if image.get("height") and image.get("width"):
            return int(image["height"]), int(image["width"])
        try:
            header = EncodedImage(path.read_bytes())
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(
                f"{printable(path)} cannot be read ({reason}), and the JSON has no size for it: repair the image"
            ) from None
        return header.height, header.width

    def _check_files(self, records: list[Record]) -> None:
        # Listing each folder once is faster than a stat of each image.
        there: dict[Path, set[str]] = {}
        absent = []
        for record in records:
            folder = record.path.parent
            if folder not in there:
                there[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
            if record.path.name not in there[folder]:
                absent.append(record.path)
        if absent:
            raise ValueError(
                f"{len(absent)} of the {len(records)} images of {self.annotations} are missing, the first is "
                f"{printable(absent[0])}: add them, or remove them from the JSON file"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    absent = [key for key in ("images", "categories") if not isinstance(content, dict) or key not in content]
    if absent:
        raise ValueError(f"{path} has no {' and no '.join(absent)}: it must be in COCO's instances format")
    if not content["images"]:
        raise ValueError(f"{path} lists no images: name another file")
    return content


def _categories(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    categories = sorted(content["categories"], key=lambda category: category["id"])
    ids = [category["id"] for category in categories]
    if not ids or len(set(ids)) != len(ids):
        problem = "two categories with the same id" if ids else "no categories"
        raise ValueError(f"{path} has {problem}: give each category a unique id")
    return categories


def _instance(
    annotation: dict[str, Any], labels: dict[int, int], height: int, width: int, where: str
) -> Instance | None:
    """Return None if all polygons have fewer than three corners: Detectron2 skips such objects, too."""
    category, box, shape = (annotation.get(key) for key in ("category_id", "bbox", "segmentation"))
    where = f"{where}, annotation {annotation.get('id')}"
    if category not in labels:
        raise ValueError(f"{where} has category {category}, which is not among the file's categories: add it")
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"{where} has the bbox {box}: it must be [left, top, width, height]")
    if not shape:
        raise ValueError(f"{where} has no segmentation: add a mask for each object")
    rle, polygons = None, []
    if isinstance(shape, dict):
        if tuple(shape["size"]) != (height, width):
            size = [height, width]
            raise ValueError(f"{where} has a mask of size {shape['size']}, its image {size}: make the sizes equal")
        rle = coco_mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else dict(shape)
    else:
        polygons = [np.asarray(p, dtype=np.float64) for p in shape if len(p) >= 6 and len(p) % 2 == 0]
        if not polygons:
            return None
    area = annotation.get("area")
    if area is None:
        area = _area(polygons, rle, height, width)
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    crowd = bool(annotation.get("iscrowd", 0))
    return Instance(labels[category], (left, top, right, bottom), polygons, rle, crowd, float(area))


def _area(polygons: Iterable[np.ndarray], rle: dict[str, Any] | None, height: int, width: int) -> float:
    return float(coco_mask.area(rle) if rle else rasterize(list(polygons), height, width).sum())

"""Images with object masks, in COCO's format or as VOC's SegmentationObject.

Dimensions: n objects, H x W pixels, S pixels a side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slotcon_hub.images import decode, printable
from training.data.coco import CocoImages
from training.data.images import UnreadableImage
from training.data.masks import IGNORE, CenterSquare, LabeledImages

__all__ = ["CocoObjects", "Objects", "VocObjects"]


class Objects(NamedTuple):
    """A centre crop of an image, and its objects."""

    image: Tensor
    """uint8 3 x S x S."""
    masks: Tensor
    """bool n x S x S, none empty; they may overlap."""
    labels: list[int]
    """Class of each object."""
    void: Tensor
    """bool S x S: pixels to ignore."""


def _crop(image: Tensor, masks: Tensor, labels: Sequence[int], void: Tensor, crop: CenterSquare) -> Objects:
    image, stack = crop(image, torch.cat([masks, void[None]]).byte())
    masks, void = stack[:-1].bool(), stack[-1].bool()
    kept = (masks & ~void).flatten(1).any(1)
    labels = [label for label, one in zip(labels, kept.tolist(), strict=True) if one]
    return Objects(image, masks[kept], labels, void)


class CocoObjects(Dataset[Objects]):
    """Objects of a JSON file in COCO's format, without crowds."""

    def __init__(self, images: Path, annotations: Path, size: int) -> None:
        """Read the JSON file.

        Args:
            images: folder of its ``file_name`` entries.
            annotations: the JSON file.
            size: S.

        Raises:
            ValueError: an image or entry is missing or invalid.
        """
        self.records, self.crop = CocoImages(annotations, [images]), CenterSquare(size)
        self.classes = self.records.classes

    def __len__(self) -> int:
        """Number of images, with and without objects."""
        return len(self.records)

    def __getitem__(self, index: int) -> Objects:
        """Read an image, and rasterize its objects.

        Raises:
            UnreadableImage: the image cannot be read.
            ValueError: its size differs from the JSON file.
        """
        record = self.records[index]
        try:
            image = decode(record.path.read_bytes())
        except OSError as error:
            raise UnreadableImage.of(printable(record.path), error) from None
        size = record.height, record.width
        if image.shape[1:] != size:
            found = f"{image.shape[2]} x {image.shape[1]}"
            raise ValueError(f"{printable(record.path)} has {found} pixels, in the JSON {size[1]} x {size[0]}")
        objects = [one for one in record.instances if not one.crowd]
        masks = np.array([one.bitmap(*size) for one in objects], dtype=np.uint8).reshape(-1, *size)
        void = torch.zeros(size, dtype=torch.bool)
        return _crop(image, torch.from_numpy(masks), [one.label for one in objects], void, self.crop)


class VocObjects(Dataset[Objects]):
    """Objects of VOC: PNGs of object numbers (0 background, 255 void) and PNGs of classes."""

    def __init__(self, images: Path, objects: Path, names: Sequence[str] | None, size: int) -> None:
        """List the files.

        Args:
            images: folder of JPEGs.
            objects: the folder SegmentationObject, with SegmentationClass beside it.
            names: of the images, without suffix; None: all images in ``objects``.
            size: S.

        Raises:
            ValueError: a file is missing.
        """
        kinds = objects.parent / "SegmentationClass"
        for folder in (images, objects, kinds):
            if not folder.is_dir():
                raise ValueError(f"there is no folder {folder}: VOC has it beside SegmentationObject")
        names = sorted(path.stem for path in objects.glob("*.png")) if names is None else names
        files = [(images / f"{name}.jpg", objects / f"{name}.png", kinds / f"{name}.png") for name in names]
        if not files:
            raise ValueError(f"{objects} holds no PNG: give VOC's folder SegmentationObject")
        absent = [path for three in files for path in three if not path.is_file()]
        if absent:
            raise ValueError(
                f"{len(absent)} files of {len(files)} images are missing, the first is {printable(absent[0])}: "
                "add them, or remove these images from the list"
            )
        self.numbers = LabeledImages.of([(image, number) for image, number, _ in files])
        self.kinds = LabeledImages.of([(image, kind) for image, _, kind in files])
        self.crop = CenterSquare(size)
        self.classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.numbers)

    def __getitem__(self, index: int) -> Objects:
        """Read an image, its objects and their classes.

        Raises:
            UnreadableImage: a file cannot be read.
            ValueError: the files of an image differ in size, or an object has no class.
        """
        image, numbers = self.numbers[index]
        file = self.kinds.files[index][1]
        kinds = self.kinds.read_mask(file)
        if kinds.shape != numbers.shape:
            raise ValueError(f"{printable(file)} differs in size from the object mask of its image")
        present = [number for number in numbers.unique().tolist() if number not in (0, IGNORE)]
        masks = numbers == torch.tensor(present, dtype=torch.uint8)[:, None, None]
        labels = []
        for number, mask in zip(present, masks, strict=True):
            shown = kinds[mask & (kinds != 0) & (kinds != IGNORE)]
            if not len(shown):
                raise ValueError(f"{printable(file)} has no class for object {number} of its image")
            labels.append(int(shown.long().bincount().argmax()))
        return _crop(image, masks, labels, numbers == IGNORE, self.crop)

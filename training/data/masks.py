"""Images with a label for each pixel, read strictly: missing files and unknown labels are errors.

Dimensions: H x W pixels of an image.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from tqdm.auto import tqdm

from slotcon_hub.images import EncodedImage, ImageFiles, decode, printable, resize_and_center_crop
from training.data.images import UnreadableImage, are_too_many

__all__ = ["IGNORE", "CenterSquare", "LabeledImages"]

IGNORE = 255
"""The label of a pixel without a class."""

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class LabeledImages(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an image, uint8 3 x H x W, and its mask of classes, uint8 H x W, 255 for pixels without class."""

    def __init__(
        self,
        images: Path,
        masks: Path,
        *,
        names: Sequence[str] | None = None,
        labels: Mapping[int, int] | None = None,
        transform: Transform | None = None,
    ) -> None:
        """List images at any depth of a folder, and PNG masks at the same relative paths of another.

        Args:
            images: folder of images.
            masks: folder of masks.
            names: JPEGs to use, without suffix; None uses all images, and requires one for each mask.
            labels: maps the labels in the masks (other than 255) to classes; None: labels are classes.
            transform: of image and mask together, as in ``torchvision.transforms.v2``.

        Raises:
            ValueError: there are no images, or an image or a mask has no partner.
        """
        if names is None:
            found, truths = _list_by_name(images, ""), _list_by_name(masks, ".png")
            _check_partners(found, truths, masks, "mask")
            _check_partners(truths, found, images, "image")
            self.files = [(found[name], truths[name]) for name in sorted(found)]
        else:
            self.files = [(images / f"{name}.jpg", masks / f"{name}.png") for name in names]
        self._set_labels(labels)
        self.transform = transform

    @classmethod
    def of(cls, files: Sequence[tuple[Path, Path]], labels: Mapping[int, int] | None = None) -> "LabeledImages":
        """Use the given pairs of an image and a mask; ``labels`` as in ``__init__``."""
        images = cls.__new__(cls)
        images.files, images.transform = list(files), None
        images._set_labels(labels)
        return images

    def _set_labels(self, labels: Mapping[int, int] | None) -> None:
        self.known = labels or {label: label for label in range(IGNORE)}
        self.table = torch.full((IGNORE + 1,), -1)
        self.table[list(self.known)] = torch.tensor(list(self.known.values()))
        self.table[IGNORE] = IGNORE

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Read an image and its mask.

        Raises:
            UnreadableImage: the image or its mask cannot be read.
            ValueError: a label is unknown, or image and mask differ in size.
        """
        path, mask = self.files[index]
        try:
            image = decode(path.read_bytes())
        except OSError as error:
            raise UnreadableImage.of(printable(path), error) from None
        truth = self.read_mask(mask)
        _check_size(mask, truth, image.shape[1], image.shape[2])
        return self.transform(tv_tensors.Image(image), tv_tensors.Mask(truth)) if self.transform else (image, truth)

    def check(self, most: int = 10_000, quiet: bool = False) -> list[UnreadableImage]:
        """Check labels, sizes and readability of masks and images before training.

        Args:
            most: maximum number of pairs to check, spread evenly; the others are checked on use.
            quiet: show no progress bar.

        Returns:
            The errors of the few that cannot be read.

        Raises:
            ValueError: a label is unknown, an image and its mask differ in size, or too many cannot be read.
        """
        files = self.files[:: math.ceil(len(self.files) / most)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = list(tqdm(pool.map(self._check, files), "masks", len(files), leave=False, disable=quiet))
        unreadable = [error for error in found if error]
        if are_too_many(len(unreadable), len(files)):
            count = f"{len(unreadable)} of {len(files)} masks and images"
            raise ValueError(f"{unreadable[0]}; {count} are unreadable: repair or remove them")
        return unreadable

    def _check(self, files: tuple[Path, Path]) -> UnreadableImage | None:
        path, mask = files
        try:
            truth, image = self.read_mask(mask), EncodedImage(path.read_bytes())
        except UnreadableImage as error:
            return error
        except OSError as error:
            return UnreadableImage.of(printable(path), error)
        _check_size(mask, truth, image.height, image.width)
        return None

    def read_mask(self, path: Path) -> Tensor:
        """Read the classes of a mask, uint8 H x W.

        Raises:
            UnreadableImage: the file cannot be read.
            ValueError: a label is unknown.
        """
        try:
            labels = EncodedImage(path.read_bytes()).decode_samples()
        except OSError as error:
            raise UnreadableImage(f"{printable(path)} cannot be read as a mask: {error}") from None
        truth = self.table[labels.clamp(max=IGNORE)].where(labels <= IGNORE, -1)
        if (truth < 0).any():
            raise ValueError(
                f"{printable(path)} has the unknown label {int(labels[truth < 0].min())}: "
                f"valid are {min(self.known)} to {max(self.known)}, and {IGNORE} for pixels without class; repair "
                "the mask, or name more classes"
            )
        return truth.byte()


def _check_size(mask: Path, truth: Tensor, height: int, width: int) -> None:
    if truth.shape != (height, width):
        raise ValueError(
            f"{printable(mask)} has {truth.shape[1]} x {truth.shape[0]} pixels, its image {width} x {height}: "
            "masks and images must have the same size (after EXIF rotation)"
        )


def _list_by_name(folder: Path, ending: str) -> dict[str, Path]:
    """Map relative path without suffix to path, for the images below a folder that end with ``ending``."""
    files: dict[str, Path] = {}
    for path in map(Path, ImageFiles(folder).paths):
        name = str(path.relative_to(folder).with_suffix(""))
        if not path.name.lower().endswith(ending):
            continue
        if name in files:
            raise ValueError(f"{path} and {files[name]} share a name: keep one of them")
        files[name] = path
    return files


def _check_partners(files: dict[str, Path], partners: dict[str, Path], folder: Path, what: str) -> None:
    alone = sorted(files.keys() - partners.keys())
    if alone:
        raise ValueError(
            f"{len(alone)} of {len(files)} files have no {what} of the same name in {folder}, the first is "
            f"{printable(files[alone[0]])}: add or remove files"
        )


@dataclass(frozen=True)
class CenterSquare:
    """Resize the short side, then crop the central square: bilinear for images, nearest-exact for labels."""

    size: int
    """Side in pixels."""

    def __call__(self, image: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Crop image (3 x H x W) and mask (H x W) to 3 x size x size and size x size."""
        image = resize_and_center_crop(image, self.size, self.size, InterpolationMode.BILINEAR)
        return image, self.labels(truth)

    def labels(self, truth: Tensor) -> Tensor:
        """Crop a mask, H x W to size x size."""
        return resize_and_center_crop(truth[None], self.size, self.size, InterpolationMode.NEAREST_EXACT)[0]

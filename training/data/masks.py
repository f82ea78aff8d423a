"""Images with a label for each pixel, read strictly: what is missing or unknown ends in a sentence that names it.

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
    """Images, uint8 3 x H x W, each with the mask of its name, uint8 H x W: classes, and 255 for none."""

    def __init__(
        self,
        images: Path,
        masks: Path,
        *,
        names: Sequence[str] | None = None,
        labels: Mapping[int, int] | None = None,
        transform: Transform | None = None,
    ) -> None:
        """List the files: images at any depth of a folder, and PNGs at the same places of another.

        Args:
            images: folder of images.
            masks: folder of masks.
            names: JPEGs to take, without ending; None takes all images, and wants an image for each mask too.
            labels: those that a mask may hold beside 255, to the classes that they mean; None takes labels for
                classes.
            transform: of image and mask together, as those of ``torchvision.transforms.v2`` are.

        Raises:
            ValueError: there are no images, or an image or a mask stands alone.
        """
        if names is None:
            found, truths = _by_name(images, ""), _by_name(masks, ".png")
            _demand_partners(found, truths, masks, "mask")
            _demand_partners(truths, found, images, "image")
            self.files = [(found[name], truths[name]) for name in sorted(found)]
        else:
            self.files = [(images / f"{name}.jpg", masks / f"{name}.png") for name in names]
        self._know(labels)
        self.transform = transform

    @classmethod
    def of(cls, files: Sequence[tuple[Path, Path]], labels: Mapping[int, int] | None = None) -> "LabeledImages":
        """Take pairs of an image and a mask, wherever they are; ``labels`` as above."""
        images = cls.__new__(cls)
        images.files, images.transform = list(files), None
        images._know(labels)
        return images

    def _know(self, labels: Mapping[int, int] | None) -> None:
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
            ValueError: a label is unknown, or the two differ in size; it names the file.
        """
        path, mask = self.files[index]
        try:
            image = decode(path.read_bytes())
        except OSError as error:
            raise UnreadableImage.of(printable(path), error) from None
        truth = self.read_mask(mask)
        _demand_size(mask, truth, image.shape[1], image.shape[2])
        return self.transform(tv_tensors.Image(image), tv_tensors.Mask(truth)) if self.transform else (image, truth)

    def check(self, most: int = 10_000, quiet: bool = False) -> None:
        """Read the masks, and the sizes of their images, before any work depends on them.

        Args:
            most: read so many at the most, spread evenly over all; the others are checked when they are used.
            quiet: show no progress bar.

        Raises:
            ValueError: a label is unknown, an image and its mask differ in size, or too many cannot be read; it
                names the file.
        """
        files = self.files[:: math.ceil(len(self.files) / most)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = list(tqdm(pool.map(self._check, files), "masks", len(files), leave=False, disable=quiet))
        unreadable = [error for error in found if error]
        if are_too_many(len(unreadable), len(files)):
            raise ValueError(f"{unreadable[0]}; {len(unreadable)} of {len(files)} cannot be: mend or remove them")

    def _check(self, files: tuple[Path, Path]) -> UnreadableImage | None:
        path, mask = files
        try:
            truth, image = self.read_mask(mask), EncodedImage(path.read_bytes())
        except UnreadableImage as error:
            return error
        except OSError as error:
            return UnreadableImage.of(printable(path), error)
        _demand_size(mask, truth, image.height, image.width)
        return None

    def read_mask(self, path: Path) -> Tensor:
        """Classes of a mask, uint8 H x W.

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
                f"known are {min(self.known)} to {max(self.known)}, and {IGNORE} for pixels without one; mend the "
                "mask, or name more classes"
            )
        return truth.byte()


def _demand_size(mask: Path, truth: Tensor, height: int, width: int) -> None:
    if truth.shape != (height, width):
        raise ValueError(
            f"{printable(mask)} is {truth.shape[1]} x {truth.shape[0]} but {width} x {height} pixels in the image: "
            "masks and images must be of one size, each turned as its EXIF says"
        )


def _by_name(folder: Path, ending: str) -> dict[str, Path]:
    """The images with an ending below a folder, by their path in it without the ending."""
    files: dict[str, Path] = {}
    for path in map(Path, ImageFiles(folder).paths):
        name = str(path.relative_to(folder).with_suffix(""))
        if not path.name.lower().endswith(ending):
            continue
        if name in files:
            raise ValueError(f"{path} and {files[name]} share a name: keep one of them")
        files[name] = path
    return files


def _demand_partners(files: dict[str, Path], partners: dict[str, Path], folder: Path, what: str) -> None:
    alone = sorted(files.keys() - partners.keys())
    if alone:
        raise ValueError(
            f"{len(alone)} of {len(files)} files have no {what} of their name in {folder}: "
            f"the first is {printable(files[alone[0]])}"
        )


@dataclass(frozen=True)
class CenterSquare:
    """The middle of an image: its short side resized, then a square; bilinear, and nearest for the labels."""

    size: int
    """Pixels of a side."""

    def __call__(self, image: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """3 x H x W and H x W to 3 x size x size and size x size, the same part of both."""
        image = resize_and_center_crop(image, self.size, self.size, InterpolationMode.BILINEAR)
        return image, self.labels(truth)

    def labels(self, truth: Tensor) -> Tensor:
        """H x W to size x size: the part of the mask alone."""
        return resize_and_center_crop(truth[None], self.size, self.size, InterpolationMode.NEAREST_EXACT)[0]

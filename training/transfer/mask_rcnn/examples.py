"""Training images with their objects: resized, flipped, batched by orientation."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from slotcon_hub.images import decode, printable
from training.data.coco import CocoImages, Instance, Record
from training.data.images import UnreadableImage
from training.data.plan import SAMPLES, MicroBatches
from training.data.tolerant import Unreadable
from training.engine.errors import RunError
from training.transfer.mask_rcnn.resize import resize, resized_size
from training.transfer.mask_rcnn.target import Mask, Target

__all__ = ["AspectBatches", "Batch", "Examples", "collate", "read_test_image"]


@dataclass(frozen=True)
class Batch:
    """A batch in one flat tensor, since each tensor from a data-loader worker needs a file descriptor.

    Attributes:
        pixels: of all images, concatenated, uint8.
        sizes: height and width of each image.
        targets: objects of each image.
    """

    pixels: Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target]

    def images(self, device: torch.device) -> list[Tensor]:
        """Return the images, uint8 3 x H x W each, on a device."""
        pixels = self.pixels.to(device, non_blocking=True)
        parts = pixels.split([3 * height * width for height, width in self.sizes])
        return [one.view(3, *size) for one, size in zip(parts, self.sizes, strict=True)]

    def pin_memory(self) -> "Batch":
        """Return a copy in pinned memory; called by the loader."""
        return Batch(self.pixels.pin_memory(), self.sizes, self.targets)


def collate(samples: list[tuple[np.ndarray, Target]]) -> Batch:
    """Collate 3 x H x W images of any sizes and their objects."""
    images, targets = zip(*samples, strict=True)
    flat = torch.from_numpy(np.concatenate([one.ravel() for one in images]))
    return Batch(flat, [one.shape[1:] for one in images], list(targets))


def read_test_image(record: Record) -> np.ndarray:
    """Read an image, uint8 H x W x 3, RGB, that no other one can replace.

    Raises:
        RunError: it cannot be read, or its size differs from the data set's JSON file.
    """
    try:
        return _read_image(record)
    except UnreadableImage as error:
        raise RunError(f"{error}: repair it, since no test image may be left out") from None


def _read_image(record: Record) -> np.ndarray:
    try:
        image = decode(record.path.read_bytes()).permute(1, 2, 0).numpy()
    except OSError as error:
        raise UnreadableImage.of(printable(record.path), error) from None
    if image.shape[:2] != (record.height, record.width):
        found, said = (" x ".join(map(str, s[::-1])) for s in (image.shape[:2], (record.height, record.width)))
        raise RunError(f"{printable(record.path)} is {found} pixels, not {said} as its data set says: mend one")
    return image


class Examples(Dataset[tuple[np.ndarray, Target]]):
    """Training examples by (epoch, index): each is drawn from (seed, epoch, index)."""

    def __init__(self, images: CocoImages, short: tuple[int, ...], longest: int, seed: int) -> None:
        """Select the images with objects.

        Args:
            images: all images.
            short: short sides in pixels, one drawn per image.
            longest: maximum long side in pixels.
            seed: of the draws.

        Raises:
            ValueError: no image has an object.
        """
        self.images, self.short, self.longest, self.seed = images, short, longest, seed
        self.numbers = np.flatnonzero(images.learnable)
        if not len(self.numbers):
            raise ValueError(f"{images.annotations} has no object that could be learnt: name another file")
        self._unreadable = Unreadable(len(self.numbers))

    def __len__(self) -> int:
        """Number of images with objects."""
        return len(self.numbers)

    def wide(self) -> np.ndarray:
        """Return for each image whether it is wider than high."""
        height, width = self.images.sizes[self.numbers].T
        return width > height

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, Target]:
        """Read, resize and randomly flip an image with its objects; another one, drawn too, if it is unreadable.

        Raises:
            RunError: too many are unreadable, or the size of one differs from the data set's JSON file.
        """
        rng = np.random.default_rng([self.seed, SAMPLES, *key])
        _, (record, image) = self._unreadable.read_first(self._read, self._numbers(key[1], rng))
        size = resized_size(record.height, record.width, int(rng.choice(self.short)), self.longest)
        image, flip = resize(image, size), bool(rng.random() < 0.5)
        pixels = (image[:, ::-1] if flip else image).transpose(2, 0, 1)
        return pixels, _target(record, size, flip)

    def _read(self, index: int) -> tuple[Record, np.ndarray]:
        record = self.images[self.numbers[index]]
        return record, _read_image(record)

    def _numbers(self, index: int, rng: np.random.Generator) -> Iterator[int]:
        """Yield an image, and then all in random order, those of its orientation first: see AspectBatches."""
        yield index
        wide, order = self.wide(), rng.permutation(len(self))
        yield from order[np.argsort(wide[order] != wide[index], kind="stable")].tolist()


def _target(record: Record, size: tuple[int, int], flip: bool) -> Target:
    """Transform the objects of an image, without crowds and empty boxes."""
    height, width = size
    scale = np.array([width / record.width, height / record.height])
    objects = [one for one in record.instances if not one.crowd]
    boxes = np.array([one.box for one in objects], dtype=np.float64).reshape(-1, 4) * np.tile(scale, 2)
    if flip:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    boxes = boxes.clip(0, [width, height, width, height]).astype(np.float32)
    keep = (boxes[:, 2:] - boxes[:, :2] > 1e-5).all(1)
    masks = [_mask(one, scale, size, flip) for one, kept in zip(objects, keep, strict=True) if kept]
    return Target(boxes[keep], np.array([one.label for one in objects], dtype=np.int64)[keep], masks)


def _mask(instance: Instance, scale: np.ndarray, size: tuple[int, int], flip: bool) -> Mask:
    height, width = size
    if instance.rle is not None:
        bitmap = Image.fromarray(instance.bitmap(*instance.rle["size"])).resize(
            (width, height), Image.Resampling.NEAREST
        )
        return np.array(np.asarray(bitmap)[:, ::-1] if flip else bitmap)
    polygons = [polygon.reshape(-1, 2) * scale for polygon in instance.polygons]
    if flip:
        polygons = [np.stack([width - p[:, 0], p[:, 1]], axis=1) for p in polygons]
    return [polygon.ravel() for polygon in polygons]


class AspectBatches(MicroBatches):
    """Micro-batches of images that are all wide or all high, which reduces padding.

    An epoch is a random order of all images. Wide and high images are queued separately until there is a global
    batch of one kind. Global batches do not depend on the number of processes.
    """

    def __init__(self, wide: np.ndarray, batch_size: int, steps: range, **shard: int) -> None:
        """Set the range of steps.

        Args:
            wide: for each image, whether it is wider than high.
            batch_size: see :class:`training.data.plan.MicroBatches`, like the following.
            steps: range of steps.
            **shard: ``seed``, ``rank``, ``processes`` and ``accumulation``.
        """
        super().__init__(batch_size, steps, **shard)
        self.wide = wide.tolist()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield micro-batches; earlier steps are planned too, since the queues depend on them."""
        parts = self.processes * self.accumulation
        for step, batch in enumerate(itertools.islice(self._batches(), self.steps.stop)):
            if step >= self.steps.start:
                for part in range(self.rank, parts, self.processes):
                    yield batch[part::parts]

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        rows: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for epoch in itertools.count():
            for index in self._rng(epoch).permutation(len(self.wide)).tolist():
                row = rows[self.wide[index]]
                row.append((epoch, index))
                if len(row) == self.batch_size:
                    yield row.copy()
                    row.clear()

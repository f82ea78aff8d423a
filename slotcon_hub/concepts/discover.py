"""Visual concept discovery (supplementary A.4): the most similar segments of every prototype.

Dimensions: B images, K prototypes, S side of a crop in pixels.
"""

import functools
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slotcon_hub.concepts.inference import CenterCrop, dense_maps
from slotcon_hub.concepts.segments import group_map, pool_segments
from slotcon_hub.concepts.stopwatch import Stopwatch
from slotcon_hub.distributed import rank, shard_batches, world_size
from slotcon_hub.images import ImageFiles, decode
from slotcon_hub.models.prototype_model import SlotConPrototypes

__all__ = ["Batch", "Concepts", "Retrieved", "crops", "discover"]

_DIGITS = 5  # of a similarity: fewer than float32 has, so that equal images tie


class Retrieved(NamedTuple):
    """A segment that was retrieved for its prototype; greater tuples are more similar."""

    similarity: float
    """Cosine of the average-pooled projection with the prototype, in [-1, 1]."""
    order: int
    """Minus the index of the image: the first image wins ties."""
    pixels: int
    """Number of the segment's pixels in the S x S crop."""
    mask: bytes
    """Packed bits of the S x S pixels; empty for a whole image."""

    @property
    def image(self) -> int:
        """Index of the image."""
        return -self.order

    def pixel_mask(self, side: int) -> np.ndarray:
        """S x S booleans; all true for a whole image."""
        if not self.mask:
            return np.ones((side, side), dtype=bool)
        bits = np.unpackbits(np.frombuffer(self.mask, np.uint8), count=side * side)
        return bits.reshape(side, side).astype(bool)

    def box(self, side: int) -> tuple[int, int, int, int]:
        """Bounding box x0, y0, x1, y1 in pixels of the crop; x1 and y1 are exclusive."""
        mask = self.pixel_mask(side)
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class Concepts:
    """For every prototype the number of its segments, and the most similar ones."""

    def __init__(self, prototypes: int, top: int, *, whole: bool = False) -> None:
        """Create an empty collection.

        Args:
            prototypes: K.
            top: segments kept per prototype; memory is K x top masks for any number of images.
            whole: each image is one segment.
        """
        self.top, self.whole = top, whole
        self.images = 0
        """Number of images that were segmented."""
        self.unreadable: list[tuple[int, str]] = []
        """Index and reason for each image that could not be read."""
        self.segments = [0] * prototypes
        """Number of segments of each prototype."""
        self.pixels = [0] * prototypes
        """Number of pixels of each prototype in all crops."""
        self._kept: list[list[Retrieved]] = [[] for _ in range(prototypes)]

    def add(self, image: int, prototype: int, similarity: float, pixels: int, groups: Tensor | None) -> None:
        """Count a segment, and keep it if it is among the most similar.

        Args:
            image: index of the image.
            prototype: to which it is assigned.
            similarity: of its feature with the prototype.
            pixels: of the segment.
            groups: S x S prototype indices of the image's pixels; None for a whole image.
        """
        self.segments[prototype] += 1
        self.pixels[prototype] += pixels
        kept = self._kept[prototype]
        if len(kept) == self.top and (similarity, -image) < kept[0][:2]:
            return
        mask = b"" if groups is None else np.packbits((groups == prototype).numpy()).tobytes()
        heapq.heappush(kept, Retrieved(similarity, -image, pixels, mask))
        if len(kept) > self.top:
            heapq.heappop(kept)

    def merge(self, other: "Concepts") -> None:
        """Add the segments of other images."""
        self.images += other.images
        self.unreadable = sorted(self.unreadable + other.unreadable)
        for k, kept in enumerate(other._kept):
            self.segments[k] += other.segments[k]
            self.pixels[k] += other.pixels[k]
            self._kept[k] = sorted(self._kept[k] + kept)[-self.top :]  # a sorted list is a heap

    def nearest(self, prototype: int) -> list[Retrieved]:
        """Kept segments of a prototype, the most similar first."""
        return sorted(self._kept[prototype], reverse=True)

    def most_used(self) -> list[int]:
        """Prototypes with segments, sorted by their number of segments, descending."""
        used = [k for k, count in enumerate(self.segments) if count]
        return sorted(used, key=lambda k: (-self.segments[k], k))

    def unused(self) -> list[int]:
        """Prototypes without segments."""
        return [k for k, count in enumerate(self.segments) if not count]


@dataclass(frozen=True)
class Batch:
    """Crops with the indices of their images, and the unreadable images."""

    numbers: list[int]
    crops: Tensor
    """uint8 B x 3 x S x S; padded with zeros beyond ``numbers``, so that all batches have one size."""
    unreadable: list[tuple[int, str]]
    """Index and reason for each."""


class _Crops(Dataset[tuple[int, Tensor | str]]):
    def __init__(self, files: ImageFiles, crop: CenterCrop) -> None:
        self.files, self.crop = files, crop

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, self.crop(decode(self.files.read(index)))
        except OSError as error:
            return index, str(error)


def _collate(samples: list[tuple[int, Any]], size: int, side: int) -> Batch:
    read = [(index, crop) for index, crop in samples if isinstance(crop, Tensor)]
    crops = torch.zeros(size, 3, side, side, dtype=torch.uint8)
    for row, (_, crop) in enumerate(read):
        crops[row] = crop
    unreadable = [(index, reason) for index, reason in samples if isinstance(reason, str)]
    return Batch([index for index, _ in read], crops, unreadable)


def crops(
    files: ImageFiles,
    crop: CenterCrop,
    *,
    batch_size: int,
    workers: int,
    pending: Callable[[list[range]], list[range]] | None = None,
) -> DataLoader[Batch]:
    """Read, decode and crop images in their order, in ``workers`` processes, or in this one for 0.

    In a process group each process reads its :func:`shard_batches`, or those of them that ``pending`` returns. All
    batches have one size, since the last digits of a network's output may depend on it.
    """
    dataset: Any = _Crops(files, crop)
    collate = functools.partial(_collate, size=min(batch_size, len(files)), side=crop.side)
    batches = shard_batches(len(files), batch_size, rank(), world_size())
    sampler: Any = pending(batches) if pending else batches
    return DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)


@torch.inference_mode()
def discover(
    model: SlotConPrototypes,
    batches: Iterable[Batch],
    *,
    top: int,
    whole: bool = False,
    precision: torch.dtype = torch.float32,
    watch: Stopwatch | None = None,
) -> Concepts:
    """Assign all segments of images to prototypes, and keep the most similar ones of each prototype.

    A segment belongs to the prototype that :func:`group_map` gives its pixels; its feature is the mean of their
    projections. A whole image belongs to the prototype most similar to the mean of all its projections.

    Args:
        model: in eval mode.
        batches: of :func:`crops`.
        top: segments kept of each prototype.
        whole: each image is one segment, as in the paper for ImageNet.
        precision: of the network, float32 or bfloat16.
        watch: measures the seconds of "decoding", "network" and "segments".
    """
    watch = watch or Stopwatch(next(model.parameters()).device)
    prototypes = F.normalize(model.prototypes.weight.float())
    concepts = Concepts(len(prototypes), top, whole=whole)
    for batch in watch.measure_waiting(batches, "decoding"):
        concepts.unreadable += batch.unreadable
        number = len(batch.numbers)
        with watch.measure("network"):
            z, scores = dense_maps(model, batch.crops, precision)
        with watch.measure("segments"):
            concepts.images += number
            size = batch.crops.shape[2], batch.crops.shape[3]
            found = _segments(z[:number], None if whole else scores[:number], prototypes, size) if number else ()
            for row, prototype, similarity, pixels, groups in found:
                concepts.add(batch.numbers[row], prototype, similarity, pixels, groups)
    return concepts


def _segments(
    z: Tensor, scores: Tensor | None, prototypes: Tensor, size: tuple[int, int]
) -> Iterator[tuple[int, int, float, int, Tensor | None]]:
    """Yield the arguments of :meth:`Concepts.add` for the segments of a batch, with rows instead of image indices.

    Args:
        z: B x D x h x w projections.
        scores: B x K x h x w similarities; None for whole images.
        prototypes: K x D, normalised.
        size: of the crops, in pixels.
    """
    if scores is None:
        groups = None
        similarity, prototype = (F.normalize(z.mean((2, 3))) @ prototypes.T).max(1)
        image, pixels = torch.arange(len(z)), torch.full((len(z),), size[0] * size[1])
    else:
        groups = group_map(scores, size)[0]
        image, prototype, pixels, features = pool_segments(z, groups)
        similarity = (F.normalize(features) * prototypes[prototype]).sum(1)
        groups = groups.int().cpu()
    columns = (values.tolist() for values in (image, prototype, similarity, pixels))
    for row, k, cosine, area in zip(*columns, strict=True):
        yield row, k, round(cosine, _DIGITS), area, None if groups is None else groups[row]

"""Training continues when a few images are unreadable: they are reported, counted and replaced."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from training.data.images import UnreadableImage, are_too_many
from training.engine.errors import RunError
from training.engine.signals import loading

__all__ = ["Tolerant", "load_tolerant"]


class Tolerant(Dataset[Any]):
    """Append a bool to each sample (a tuple): True if it was read, False if it replaces an unreadable one.

    An unreadable sample is replaced by the next readable one. Unreadable images are counted over all workers of
    a process, and each is reported once on stderr.
    """

    def __init__(self, data: Any) -> None:
        """Wrap a data set whose ``__getitem__`` raises UnreadableImage."""
        self.data = data
        self._unreadable = torch.zeros(len(data), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Read a sample, or the next one that can be read.

        Raises:
            RunError: a sample has another error, or too many images are unreadable.
        """
        number = index
        while True:
            try:
                return *self.data[number], number == index
            except UnreadableImage as error:
                self._count_unreadable(number, error)
                number = (number + 1) % len(self)
            except (ValueError, OSError) as error:
                raise RunError(str(error)) from None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield the readable samples, without the appended bool."""
        return (tuple(sample) for *sample, is_read in map(self.__getitem__, range(len(self))) if is_read)

    def _count_unreadable(self, number: int, error: UnreadableImage) -> None:
        if self._unreadable[number]:
            return
        self._unreadable[number] = True
        count = int(self._unreadable.sum())
        if are_too_many(count, len(self)):
            raise RunError(f"{error}; at least {count} of {len(self)} images are unreadable: repair or remove them")
        print(f"skipped: {error}", file=sys.stderr, flush=True)


def load_tolerant(data: Any, batch_size: int, workers: int, *, shuffle: bool = False) -> DataLoader[Any]:
    """Load batches of :class:`Tolerant` samples."""
    return DataLoader(Tolerant(data), batch_size, shuffle, **loading(workers))

"""Training continues when a few images are unreadable: they are reported, counted and replaced."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from training.data.images import UnreadableImage, are_too_many
from training.engine.errors import RunError
from training.engine.signals import loading

__all__ = ["Tolerant", "Unreadable", "load_tolerant"]

T = TypeVar("T")


class Unreadable:
    """The unreadable images of a data set, counted over all workers of a process, each reported once on stderr."""

    def __init__(self, images: int) -> None:
        """Set the number of images; none is known to be unreadable yet."""
        self._known = torch.zeros(images, dtype=torch.bool).share_memory_()

    def read_first(self, read: Callable[[int], T], numbers: Iterable[int]) -> tuple[int, T]:
        """Read the first readable one of some images.

        Args:
            read: raises UnreadableImage.
            numbers: the image that is wanted, and then all others, in the order in which they replace it.

        Returns:
            Its number, and what was read.

        Raises:
            RunError: an image has another error, or too many are unreadable.
        """
        numbers = iter(numbers)
        while True:  # it is too many before all are
            number = next(numbers)
            try:
                return number, read(number)
            except UnreadableImage as error:
                self._add(number, error)
            except (ValueError, OSError) as error:
                raise RunError(str(error)) from None

    def _add(self, number: int, error: UnreadableImage) -> None:
        if self._known[number]:
            return
        self._known[number] = True
        count, images = int(self._known.sum()), len(self._known)
        if are_too_many(count, images):
            raise RunError(f"{error}; at least {count} of {images} images are unreadable: repair or remove them")
        print(f"skipped: {error}", file=sys.stderr, flush=True)


class Tolerant(Dataset[Any]):
    """Append a bool to each sample (a tuple): True if it was read, False if it replaces an unreadable one.

    An unreadable sample is replaced by the next readable one. Unreadable images are counted over all workers of
    a process, and each is reported once on stderr.
    """

    def __init__(self, data: Any) -> None:
        """Wrap a data set whose ``__getitem__`` raises UnreadableImage."""
        self.data = data
        self._unreadable = Unreadable(len(data))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Read a sample, or the next one that can be read.

        Raises:
            RunError: a sample has another error, or too many images are unreadable.
        """
        numbers = ((index + n) % len(self) for n in range(len(self)))
        number, sample = self._unreadable.read_first(self.data.__getitem__, numbers)
        return *sample, number == index

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield the readable samples, without the appended bool."""
        return (tuple(sample) for *sample, is_read in map(self.__getitem__, range(len(self))) if is_read)


def load_tolerant(data: Any, batch_size: int, workers: int, *, shuffle: bool = False) -> DataLoader[Any]:
    """Load batches of :class:`Tolerant` samples."""
    return DataLoader(Tolerant(data), batch_size, shuffle, **loading(workers))

"""Batches of view pairs, and their loader.

Every sample is drawn from (seed, epoch, index) and every order from (seed, epoch), for any number of processes,
workers or interruptions.
"""

import itertools
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset

from slotcon_hub.images import EncodedImage
from training.data import color
from training.data.images import TOLERATED, Images, are_too_many
from training.data.plan import SAMPLES, Steps
from training.data.views import Pair, TwoCrops, TwoViews, stack
from training.engine.errors import RunError
from training.engine.signals import loading

__all__ = ["TooManyUnreadable", "Unreadable", "ViewPairs", "collate", "collate_augmented", "make_loader"]

SUBSTITUTES = 100  # images tried instead of an unreadable one
PAUSES = (0.1, 0.5, 2)  # seconds between attempts to read an image
LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


@dataclass
class _Draft:
    """A sample in preparation."""

    rng: np.random.Generator
    index: int
    unreadable: dict[int, str] = field(default_factory=dict)
    """Reasons of unreadable images, by index."""
    tried: int = 0
    """Number of failed reads, repeated images included."""
    image: EncodedImage = field(init=False)
    views: TwoCrops = field(init=False)


class ViewPairs(Dataset[tuple[Pair, dict[int, str]]]):
    """Pairs of views of images, by (epoch, index)."""

    def __init__(self, images: Images, views: TwoViews, seed: int) -> None:
        self.images, self.views, self.seed = images, views, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Pair, dict[int, str]]:
        """Sample of (epoch, index): two views, and the reasons of unreadable images by index.

        An unreadable image is replaced by another one, drawn from the same seed; after a hundred of them by a black
        one, since such data end the run at its next line of metrics.
        """
        (sample,) = self.__getitems__([key])
        return sample

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Pair, dict[int, str]]]:
        """Samples of a batch: all draws come before all decoding, which keeps the code of each in the caches."""
        drafts = [_Draft(np.random.default_rng([self.seed, SAMPLES, *key]), key[1]) for key in keys]
        for draft in drafts:
            self._draw(draft)
        return [self._make(draft) for draft in drafts]

    def _draw(self, draft: _Draft) -> None:
        """Draw the views of an image whose header can be read."""
        while draft.tried < SUBSTITUTES:
            try:
                draft.image = EncodedImage(self._read(draft.index))
                draft.views = self.views.draw(draft.image.height, draft.image.width, draft.rng)
                return
            except OSError as error:
                self._substitute(draft, error)

    def _read(self, index: int) -> bytes:
        """Read an image's bytes, with retries on errors that may be temporary, as of a file server."""
        for pause in PAUSES:
            try:
                return self.images.read(index)
            except LASTING:
                raise
            except OSError as error:
                if error.errno is None and not isinstance(error, TimeoutError):
                    raise  # not a system error: there is no image
                time.sleep(pause)
        return self.images.read(index)

    def _make(self, draft: _Draft) -> tuple[Pair, dict[int, str]]:
        while draft.tried < SUBSTITUTES:
            try:
                pixels = draft.image.decode(reduction=draft.views.reduction)
                return self.views.cut(pixels, draft.views), draft.unreadable
            except OSError as error:
                self._substitute(draft, error)
                self._draw(draft)
        black = torch.zeros(3, self.views.size, self.views.size, dtype=torch.uint8)
        drawn = self.views.draw(self.views.size, self.views.size, draft.rng)
        return self.views.cut(black, drawn), draft.unreadable

    def _substitute(self, draft: _Draft, error: OSError) -> None:
        draft.unreadable[draft.index] = error.strerror or str(error)
        draft.tried += 1
        draft.index = int(draft.rng.integers(len(self.images)))


class TooManyUnreadable(RunError):
    """Too many images cannot be read."""


class Unreadable:
    """Unreadable images of a run: reported once, counted over all processes."""

    def __init__(self, images: Images, accelerator: Accelerator, known: list[int]) -> None:
        """``known`` has the indices known already; new ones are appended to it."""
        self.images, self.accelerator, self.known = images, accelerator, known
        self.mine: dict[int, str] = {}

    def __len__(self) -> int:
        """Number of unreadable images found so far by all processes."""
        return len(self.known)

    def add(self, reasons: dict[int, str]) -> None:
        """Add unreadable images of this process, with their reasons."""
        self.mine.update(reasons)

    def check(self) -> None:
        """Report the new ones; a collective call of all processes.

        Raises:
            TooManyUnreadable: they are more than one and more than 1 % of the images, or all; raised on all
                processes.
        """
        met = dict(gather_object(sorted(self.mine.items())))
        for index in sorted(met.keys() - set(self.known)):
            name = self.images.name(index)
            self.accelerator.print(f"skipped, since it cannot be read: {name} ({met[index]})", file=sys.stderr)
        self.known[:] = sorted({*self.known, *met})
        if are_too_many(len(self.known), len(self.images)):
            names = "\n  ".join(self.images.name(index) for index in self.known)
            raise TooManyUnreadable(
                f"{len(self.known)} of {len(self.images)} images cannot be read, more than {TOLERATED:.0%}: "
                f"mend or remove them, then start again\n  {names}"
            )


def collate(samples: list[tuple[Pair, dict[int, str]]]) -> dict[str, Any]:
    """Stack pairs of views, and merge ``unreadable``: reasons by index."""
    pairs, unreadable = zip(*samples, strict=True)
    return {**stack(pairs), "unreadable": dict(itertools.chain(*(reasons.items() for reasons in unreadable)))}


def collate_augmented(samples: list[tuple[Pair, dict[int, str]]]) -> dict[str, Any]:
    """:func:`collate`, and augment the colours: ``views`` are float32 2 x B x 3 x S x S, standardised."""
    batch = collate(samples)
    crops, parameters = batch["views"], batch.pop("color")
    return {**batch, "views": color.apply(crops.flatten(0, 1), parameters.flatten(0, 1)).view(crops.shape)}


def make_loader(pairs: ViewPairs, steps: Steps, workers: int, *, augmented: bool = False) -> DataLoader[Any]:
    """Create the loader of a run's micro-batches, with persistent workers.

    Args:
        pairs: of views.
        steps: plan of the run.
        workers: data-loading processes.
        augmented: augment the colours there too, where no GPU does it faster.
    """
    return DataLoader(
        pairs,
        batch_sampler=steps,
        collate_fn=collate_augmented if augmented else collate,
        pin_memory=torch.cuda.is_available(),
        **loading(workers),
    )

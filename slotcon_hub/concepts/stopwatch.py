"""Timing of a command's phases."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["Stopwatch"]

Item = TypeVar("Item")


class Stopwatch:
    """Seconds spent per phase, with the device synchronised."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    def measure_waiting(self, items: Iterable[Item], what: str) -> Iterator[Item]:
        """Yield the items, and add the time of waiting for each to a phase."""
        iterator = iter(items)
        while True:
            with self.measure(what):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def summary(self) -> str:
        """Seconds of all phases, as text."""
        return ", ".join(f"{what} {seconds:.2f} s" for what, seconds in self.seconds.items())

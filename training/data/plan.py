"""The order of images in a run: drawn from (seed, epoch); augmentations are drawn from (seed, epoch, index)."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from training.data.streaming import deal

__all__ = ["SAMPLES", "MicroBatches", "Steps"]

ORDERS, SAMPLES = 0, 1  # random streams; the engine's steps use another


class MicroBatches(Sampler[list[tuple[int, int]]]):
    """Yield this process's micro-batches of (epoch, index) pairs, for the steps of a run."""

    def __init__(
        self, batch_size: int, steps: range, *, seed: int, rank: int = 0, processes: int = 1, accumulation: int = 1
    ) -> None:
        """Set the range of steps.

        Args:
            batch_size: global batch size of an optimisation step, over all processes.
            steps: step numbers, counted from the start of the run.
            seed: of the orders.
            rank: of this process.
            processes: number of processes.
            accumulation: micro-batches per process and step.
        """
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.rank, self.processes, self.accumulation = rank, processes, accumulation

    def __len__(self) -> int:
        """Number of micro-batches of this process."""
        return len(self.steps) * self.accumulation

    def _rng(self, epoch: int) -> np.random.Generator:
        """Return the generator of an epoch's order."""
        return np.random.default_rng([self.seed, ORDERS, epoch])


class Steps(MicroBatches):
    """Micro-batches of epochs in random order.

    An epoch is a random order of all images, split into global batches; the last incomplete one is dropped. A
    global batch is split into equal micro-batches, assigned to processes, and within a process to workers, in
    turn. With row groups, each worker reads whole groups.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: range,
        *,
        groups: np.ndarray | None = None,
        workers: int = 1,
        **shard: int,
    ) -> None:
        """Set the range of steps.

        Args:
            length: number of images.
            batch_size: see :class:`MicroBatches`.
            steps: likewise.
            groups: sizes of the row groups of the images; None allows any order.
            workers: data-loader workers per process, over which row groups are distributed.
            **shard: ``seed``, ``rank``, ``processes`` and ``accumulation`` of :class:`MicroBatches`.
        """
        super().__init__(batch_size, steps, **shard)
        self.length, self.groups, self.workers = length, groups, max(workers, 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield micro-batches."""
        steps_per_epoch = self.length // self.batch_size
        current, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            epoch, place = divmod(step, steps_per_epoch)
            if epoch != current:
                current, order = epoch, self._order(epoch)
            batch = order[place * self.batch_size :][: self.batch_size]
            parts = np.split(batch, self.accumulation * self.processes)
            for part in parts[self.rank :: self.processes]:
                yield [(epoch, int(index)) for index in part]

    def _order(self, epoch: int) -> np.ndarray:
        rng = self._rng(epoch)
        if self.groups is None:
            return rng.permutation(self.length)
        steps, parts = self.length // self.batch_size, self.processes * self.accumulation
        part = np.arange(steps * self.batch_size) // (self.batch_size // parts)
        micro_batch, rank = np.divmod(part, self.processes)
        worker = (epoch * steps * self.accumulation + micro_batch) % self.workers  # DataLoader's round robin
        return deal(self.groups, rank * self.workers + worker, rng)

"""Which images come when in a run: an order is drawn from (seed, epoch), a sample from (seed, epoch, index)."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from training.data.streaming import deal

__all__ = ["SAMPLES", "Steps"]

ORDERS, SAMPLES = 0, 1  # streams of random numbers; a step of the engine draws from another


class Steps(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) pairs of this process, micro-batch after micro-batch, for the steps of a whole run.

    An epoch is a random order of all images, cut into global batches; what is left over is not seen. A global
    batch is cut into equal micro-batches, which go to the processes in turn, and in each of them to its workers
    in turn. Where images come in row groups, the order is one in which a worker reads whole ones.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: range,
        *,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        accumulation: int = 1,
        groups: np.ndarray | None = None,
        workers: int = 1,
    ) -> None:
        """Plan the steps.

        Args:
            length: number of images.
            batch_size: of all processes together, in one optimisation step.
            steps: step numbers, counted from the start of the run.
            seed: of the orders.
            rank: of this process.
            processes: how many there are.
            accumulation: micro-batches a process makes of its share.
            groups: sizes of the row groups that the images come in; None if any order will do.
            workers: of each process, for whom the groups are.
        """
        self.length, self.batch_size, self.steps, self.seed = length, batch_size, steps, seed
        self.rank, self.processes, self.accumulation = rank, processes, accumulation
        self.groups, self.workers = groups, max(workers, 1)

    def __len__(self) -> int:
        """Number of micro-batches of this process."""
        return len(self.steps) * self.accumulation

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
        rng = np.random.default_rng([self.seed, ORDERS, epoch])
        if self.groups is None:
            return rng.permutation(self.length)
        steps, parts = self.length // self.batch_size, self.processes * self.accumulation
        part = np.arange(steps * self.batch_size) // (self.batch_size // parts)
        micro_batch, rank = np.divmod(part, self.processes)
        worker = (epoch * steps * self.accumulation + micro_batch) % self.workers  # as DataLoader takes turns
        return deal(self.groups, rank * self.workers + worker, rng)

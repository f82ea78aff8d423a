"""One optimisation step of a run: micro-batches, update, and metrics."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from training.engine.run import Run

__all__ = ["Step", "seed_step"]

STEPS = 2  # random stream of steps; loaders use 0 for orders and 1 for samples


class Step:
    """An optimisation step of a run: its micro-batches, its update, and the metrics of its line."""

    def __init__(self, run: "Run", number: int, batches: Iterator[Any]) -> None:
        self.run, self.number, self.batches = run, number, batches
        self.share = 1 / run.settings.accumulation_steps
        """Weight of a micro-batch in the loss of the step."""
        self.values: dict[str, float] = {}
        self.evaluated = self.updated = False

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all groups, and log it."""
        for group in self.run.optimizer.param_groups:
            group["lr"] = lr
        self.log(lr=lr)

    def micro_batches(self) -> Iterator[Any]:
        """Yield the micro-batches of this process; DDP all-reduces gradients only in the last one."""
        last = self.run.settings.accumulation_steps - 1
        for micro in range(last + 1):
            with self.run.monitor.waiting():
                batch = next(self.batches)
            with contextlib.nullcontext() if micro == last else self.run.accelerator.no_sync(self.run.model):
                yield batch

    def backward(self, loss: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Accumulate the gradients of a micro-batch, and its metrics.

        Args:
            loss: mean over the micro-batch.
            metrics: as for :meth:`Monitor.add`.
        """
        self.run.accelerator.backward(loss * self.share)
        self.add(metrics)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the metrics of a micro-batch, as :meth:`Monitor.add` takes them."""
        self.run.monitor.add(metrics, self.number)

    def update(self) -> None:
        """Update the weights by the accumulated gradients."""
        run, accelerator = self.run, self.run.accelerator
        accelerator.unscale_gradients()
        run.monitor.add_gradients(run.module.parameters(), self.number)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.step, run.updated = self.number, not accelerator.optimizer_step_was_skipped
        run.updates += run.updated
        self.updated = True

    def log(self, **values: float) -> None:
        """Add values to the line of metrics, if this step has one."""
        self.values |= values

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Exclude the time of the block from the training speed, and write a line of metrics for this step."""
        self.evaluated = True
        with self.run.monitor.pausing():
            yield


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the random draws of the network in a step (drop path), so that no state must be saved."""
    sequence = np.random.SeedSequence([seed, STEPS, step, rank])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

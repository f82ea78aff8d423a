"""Networks that train beside each other on one batch: their times, in turn, and their bytes."""

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from training.tools.benchmark.memory import LiveBytes

__all__ = ["Contender", "alternate", "compare"]


class Contender:
    """A network that is trained on one batch again and again, by SGD with momentum."""

    def __init__(self, net: nn.Module, loss: Callable[[], Tensor], held: list[Tensor]) -> None:
        """Take the network, its loss of the batch, and the tensors of the batch."""
        self.net, self.loss, self.held = net.train(), loss, held
        self.optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)

    def step(self) -> None:
        """Take a step."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def peak(self) -> int:
        """Bytes of all tensors at the peak of a step, once there is momentum."""
        momentum = [value for state in self.optimizer.state.values() for value in state.values()]
        gc.collect()
        with LiveBytes(self.net, *self.held, *(one for one in momentum if isinstance(one, Tensor))) as tensors:
            self.step()
        return tensors.peak


def compare(contenders: dict[str, Contender], rounds: int, device: torch.device) -> Table:
    """Measure a step of each, in turn; the table says what the first one needs of the others' time and bytes."""
    times = alternate({name: contender.step for name, contender in contenders.items()}, rounds, device)
    bytes_ = {name: contender.peak() for name, contender in contenders.items()}
    ours = next(iter(times))
    table = Table("a training step", "ms", "GB of tensors", "ours / this, time", "ours / this, bytes")
    for name in times:
        ratios = (f"{values[ours] / values[name]:.2f}" for values in (times, bytes_))
        table.add_row(name, f"{times[name]:,.0f}", f"{bytes_[name] / 1e9:.2f}", *ratios)
    return table


def alternate(calls: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each call, called in turn, after one round that is not measured."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = _clock(device)
            call()
            if number:
                taken[name].append(_clock(device) - start)
    return {name: median(values) for name, values in taken.items()}


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * time.perf_counter()

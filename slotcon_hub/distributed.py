"""The few collectives that SlotCon needs; each is the identity without a process group."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.layers import SyncBatchNormAct, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "SYNCHRONIZED",
    "CpuSyncBatchNorm",
    "gather_counts",
    "gather_objects",
    "gather_rows",
    "mean",
    "rank",
    "shard_batches",
    "synchronize_batchnorm",
    "world_size",
]

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def shard_batches(length: int, batch_size: int, process: int, processes: int) -> list[range]:
    """Cut the numbers below ``length`` into batches as one process would, and deal these out to all in turn.

    What a network makes of a batch is the same, however many processes there are, and no number comes twice.

    Args:
        length: of a data set.
        batch_size: the most numbers in a batch.
        process: whose batches are returned, from 0.
        processes: how many there are.
    """
    batches = [range(first, min(first + batch_size, length)) for first in range(0, length, batch_size)]
    return batches[process::processes]


def _all_gather(gathered: Tensor, own: Tensor) -> None:
    """Concatenate a tensor of one shape from every process, by the name that this torch does not deprecate."""
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(gathered, own)


def gather_counts(counts: Tensor) -> list[list[int]]:
    """Every process's row counts, on the host; the one place where SlotCon itself waits for its device.

    Args:
        counts: n integers, the same n on all processes.

    Returns:
        One list of n integers for each process.
    """
    if world_size() == 1:
        return [counts.tolist()]
    gathered = counts.new_empty(world_size() * len(counts))  # flat: gloo takes nothing else
    _all_gather(gathered, counts)
    return gathered.view(world_size(), -1).tolist()


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Concatenate the rows of all processes, which may hold different numbers of them.

    No gradient flows between processes.

    Args:
        rows: n x D, the rows of this process.
        counts: rows of each process, in order of rank.

    Returns:
        sum(counts) x D.
    """
    if world_size() == 1:
        return rows
    longest = max(counts)
    if longest == 0:
        return rows
    padded = rows.new_zeros(longest, rows.shape[1])
    padded[: len(rows)] = rows.detach()
    gathered = rows.new_empty(world_size() * longest, rows.shape[1])
    _all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered.split(longest), counts, strict=True)])


def gather_objects(value: T) -> list[T]:
    """Every process's value, which must be one that pickle takes, on process 0 alone; on the others nothing."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered or []


def mean(value: Tensor) -> Tensor:
    """Mean of a tensor over the processes. No gradient flows between them."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


class _AllReduceSum(torch.autograd.Function):
    """Sum over the processes whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


class CpuSyncBatchNorm(_BatchNorm):
    """BatchNorm over all processes on the CPU, for which torch has none; affine, with running statistics.

    A process may bring no row at all; the processes together must bring more than one value a channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any B x C x ... will do."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise B x C or B x C x H x W by the statistics of all processes (train) or the running ones."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        dims = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input if input.dtype == torch.float64 else input.float()
        values = x.new_full((1,), x.numel() // x.shape[1])
        sums = _AllReduceSum.apply(torch.cat([x.sum(dims), values]))
        count = sums[-1].detach()
        average = sums[:-1] / count
        centered = x - average.view(shape)
        var = _AllReduceSum.apply(centered.square().sum(dims)) / count
        self._update_running(average.detach(), var.detach() * count / (count - 1))
        normalized = centered * torch.rsqrt(var + self.eps).view(shape)
        return (normalized * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, average: Tensor, var: Tensor) -> None:
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        self.running_mean.lerp_(average.to(self.running_mean), self.momentum)  # type: ignore
        self.running_var.lerp_(var.to(self.running_var), self.momentum)  # type: ignore


class _CpuSyncBatchNormAct(CpuSyncBatchNorm):
    """The same, followed by the activation of timm's norm-and-activation layer."""

    act: nn.Module
    drop: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


SYNCHRONIZED = (nn.SyncBatchNorm, CpuSyncBatchNorm)
"""The norms whose statistics are those of all processes."""


def synchronize_batchnorm(module: nn.Module, device_type: str) -> nn.Module:
    """Make every BatchNorm of a module take its statistics over all processes.

    Parameters and buffers and their names stay as they are.

    Args:
        module: changed in place; use what is returned, since a lone BatchNorm is replaced.
        device_type: where the module will be trained, such as "cuda"; torch has no such norm for "cpu".
    """
    module = convert_sync_batchnorm(module)
    if device_type == "cpu":
        ours: dict[type, type] = {nn.SyncBatchNorm: CpuSyncBatchNorm, SyncBatchNormAct: _CpuSyncBatchNormAct}
        for child in module.modules():
            child.__class__ = ours.get(type(child), type(child))  # the attributes are the same
    return module

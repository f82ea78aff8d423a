"""The collectives that SlotCon needs; without a process group each acts as for one process."""

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
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def shard_batches(length: int, batch_size: int, process: int, processes: int) -> list[range]:
    """Cut ``range(length)`` into batches, and assign batches to processes round-robin.

    No index is repeated, and the batches are the same for any number of processes.

    Args:
        length: number of samples.
        batch_size: the last batch may be smaller.
        process: rank whose batches are returned.
        processes: number of processes.
    """
    batches = [range(first, min(first + batch_size, length)) for first in range(0, length, batch_size)]
    return batches[process::processes]


def _all_gather(gathered: Tensor, own: Tensor) -> None:
    """All-gather tensors of equal shape, by the function that this torch version does not deprecate."""
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(gathered, own)


def gather_counts(counts: Tensor) -> list[list[int]]:
    """Gather every process's row counts on the host: the only device-to-host sync of SlotCon itself.

    Args:
        counts: n integers, the same n on all processes.

    Returns:
        One list of n integers for each process.
    """
    if world_size() == 1:
        return [counts.tolist()]
    gathered = counts.new_empty(world_size() * len(counts))  # flat, as gloo requires
    _all_gather(gathered, counts)
    return gathered.view(world_size(), -1).tolist()


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Concatenate the rows of all processes, whose row counts may differ.

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
    """Gather every process's picklable value on rank 0; the other ranks get an empty list."""
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
    """All-reduce sum; its gradient is the sum of the processes' gradients."""

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
    """SyncBatchNorm for the CPU, which torch lacks; affine, with running statistics.

    A process may have an empty batch; all processes together need more than one value per channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any B x C x ... input."""

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
    """CpuSyncBatchNorm followed by the activation of timm's norm-and-activation layer."""

    act: nn.Module
    drop: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


SYNCHRONIZED = (nn.SyncBatchNorm, CpuSyncBatchNorm)
"""Norm layers with statistics over all processes."""


def synchronize_batchnorm(module: nn.Module, device_type: str) -> nn.Module:
    """Convert every BatchNorm of a module to one with statistics over all processes.

    Parameters, buffers and their names are unchanged.

    Args:
        module: changed in place; use the return value, since a module that is itself a BatchNorm is replaced.
        device_type: where the module will be trained: "cpu" takes :class:`CpuSyncBatchNorm`, others torch's
            SyncBatchNorm.
    """
    module = convert_sync_batchnorm(module)
    if device_type == "cpu":
        ours: dict[type, type] = {nn.SyncBatchNorm: CpuSyncBatchNorm, SyncBatchNormAct: _CpuSyncBatchNormAct}
        for child in module.modules():
            child.__class__ = ours.get(type(child), type(child))  # the attributes are the same
    return module

"""Re-estimate BatchNorm's running statistics, or keep them unchanged."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["average_batchnorm", "recalibrate_batchnorm", "restore_buffers"]


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Re-estimate a model's BatchNorm statistics on some inputs; it ends in eval mode.

    A random-init baseline needs this, since its initial statistics are mean 0 and variance 1.
    """
    model.train()
    for batch in batches:
        model(batch)
    model.eval()


@torch.no_grad()
def average_batchnorm(model: nn.Module, batches: Iterable[tuple[Any, ...]]) -> None:
    """Set BatchNorm's statistics to the plain average of those of some batches; the model ends in eval mode.

    While weights move, running statistics lag behind them. As fvcore's ``update_bn_stats``: the average of means,
    and that of variances.

    Args:
        model: whose norms each meet a batch once, and a batch that is not empty.
        batches: arguments of the model.
    """
    norms: list[Any] = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    statistics: list[Tensor] = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    averages, momenta = [torch.zeros_like(value) for value in statistics], [norm.momentum for norm in norms]
    model.train()
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become those of the batch
    try:
        for number, batch in enumerate(batches, start=1):
            model(*batch)
            for average, own in zip(averages, statistics, strict=True):
                average += (own - average) / number
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    for own, average in zip(statistics, averages, strict=True):
        own.copy_(average)
    model.eval()


@contextlib.contextmanager
def restore_buffers(module: nn.Module) -> Iterator[None]:
    """Restore a module's buffers afterwards, such as BatchNorm statistics that forwards in the block update."""
    buffers = list(module.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:  # what is inside may end by an exception, as the recomputing of activations does when it has enough
        if buffers:
            torch._foreach_copy_(buffers, before)

"""BatchNorm's running statistics: estimated anew, or left as they are."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

__all__ = ["keeping_buffers", "recalibrate_batchnorm"]


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Let the BatchNorm statistics of a model follow those of some inputs; it ends in eval mode.

    A random initialisation becomes a fair baseline by this: its statistics are mean 0 and variance 1 before.
    """
    model.train()
    for batch in batches:
        model(batch)
    model.eval()


@contextlib.contextmanager
def keeping_buffers(module: nn.Module) -> Iterator[None]:
    """Restore a module's buffers afterwards: BatchNorm's statistics, which each forward inside moves."""
    buffers = list(module.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:  # what is inside may end by an exception, as the recomputing of activations does when it has enough
        if buffers:
            torch._foreach_copy_(buffers, before)

"""Memory of a ResNet's stem: its largest activations need not wait for the backward."""

from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["PoolThenReLU", "pool_before_relu"]


def pool_before_relu(backbone: nn.Module) -> bool:
    """Let the stem of a timm ResNet pool before its ReLU, in place; the numbers stay the same, bit for bit.

    The maximum commutes with ReLU, and so do their gradients: a window whose maximum is not positive passes none.
    Kept for the backward are the pooled map and one small index a cell, in place of the map before the pooling,
    which has four times the cells, and an int64 index a cell.

    Args:
        backbone: any; one without such a stem stays as it is.

    Returns:
        Whether it has such a stem.
    """
    if not isinstance(backbone, ResNet) or type(backbone.act1) is not nn.ReLU:
        return False
    pool = backbone.maxpool
    if type(pool) is not nn.MaxPool2d or pool.ceil_mode or pool.return_indices:
        return False
    backbone.act1, backbone.maxpool = nn.Identity(), PoolThenReLU(pool)
    return True


class PoolThenReLU(nn.Module):
    """A max pooling, and a ReLU after it."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        """Take kernel, stride, padding and dilation of a pooling."""
        super().__init__()
        self.window = pool.kernel_size, pool.stride, pool.padding, pool.dilation

    def forward(self, x: Tensor) -> Tensor:
        """B x C x H x W to B x C x h x w, not negative."""
        return nn.functional.relu(_MaxPool.apply(x, self.window), inplace=True)


class _MaxPool(torch.autograd.Function):
    """torch's pooling, which keeps its indices as small integers, and its input not at all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[Any, ...]) -> Tensor:
        out, index = nn.functional.max_pool2d_with_indices(x, *window)
        small = torch.int16 if x.shape[-1] * x.shape[-2] <= torch.iinfo(torch.int16).max else torch.int32
        ctx.save_for_backward(index.to(small))
        ctx.layout, ctx.window = (x.shape, x.stride()), window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        x = torch.empty_strided(*ctx.layout, dtype=grad.dtype, device=grad.device)  # torch reads its layout alone
        args = (*map(_pair, ctx.window), False, index.long())
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *args), None


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)

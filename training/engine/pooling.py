"""Less activation memory in a ResNet's stem: max pooling before ReLU."""

from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["PoolThenReLU", "pool_before_relu"]


def pool_before_relu(backbone: nn.Module) -> bool:
    """Swap ReLU and max pooling in the stem of a timm ResNet, in place; results and gradients stay bit-identical.

    Max commutes with ReLU, also in the gradients: a window without positive values has zero gradient. The backward
    then only needs the pooled map and a small integer index per cell, instead of the four times larger input and
    int64 indices.

    Args:
        backbone: any model; unchanged if it has no such stem.

    Returns:
        Whether the stem was changed.
    """
    if not isinstance(backbone, ResNet) or type(backbone.act1) is not nn.ReLU:
        return False
    pool = backbone.maxpool
    if type(pool) is not nn.MaxPool2d or pool.ceil_mode or pool.return_indices:
        return False
    backbone.act1, backbone.maxpool = nn.Identity(), PoolThenReLU(pool)
    return True


class PoolThenReLU(nn.Module):
    """Max pooling followed by ReLU."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        """Copy kernel, stride, padding and dilation of ``pool``."""
        super().__init__()
        self.window = pool.kernel_size, pool.stride, pool.padding, pool.dilation

    def forward(self, x: Tensor) -> Tensor:
        """Pool B x C x H x W to B x C x h x w, at least 0."""
        return nn.functional.relu(_MaxPool.apply(x, self.window), inplace=True)


class _MaxPool(torch.autograd.Function):
    """torch's max pooling, but its backward keeps no input, and indices as int16 or int32."""

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
        x = torch.empty_strided(*ctx.layout, dtype=grad.dtype, device=grad.device)  # only its layout is read
        args = (*map(_pair, ctx.window), False, index.long())
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *args), None


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)

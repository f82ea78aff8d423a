"""The image sizes that a model takes, found by trying them, since timm's configuration is often wrong.

Dimensions: B images, C channels, H x W pixels.
"""

import bisect
import copy
import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

__all__ = ["Sizes", "find_sizes", "resize_to_model"]

_FAR = 64  # pixels; a model that takes sides this much larger does not just round them down


@dataclass(frozen=True)
class Sizes:
    """The sizes of images that a model takes."""

    step: int = 1
    """Both sides are multiples of this many pixels, such as the patch size."""
    least: int = 1
    """Smallest side in pixels."""
    only: tuple[int, int] | None = None
    """H, W of a model that takes one size only."""

    def __str__(self) -> str:
        if self.only:
            return f"of {self.only[1]} x {self.only[0]} pixels only"
        least = f", at least {self.least} pixels a side" if self.least > self.step else ""
        if self.step == 1:
            return f"of any size{least}"
        return f"with sides that are multiples of {self.step} pixels{least}"

    def nearest(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size that the model takes."""
        if self.only:
            return self.only
        return self._nearest_side(height), self._nearest_side(width)

    def _nearest_side(self, pixels: int) -> int:
        return max(round(pixels / self.step) * self.step, self.least)


_KNOWN: "WeakKeyDictionary[nn.Module, Sizes]" = WeakKeyDictionary()


def find_sizes(model: nn.Module) -> Sizes:
    """Find the sizes that a model takes by forwards on the meta device; cached for each model.

    A model that cannot run there is assumed to take all.
    """
    if model not in _KNOWN:
        _KNOWN[model] = _probe_sizes(model)
    return _KNOWN[model]


def resize_to_model(model: nn.Module, images: Tensor) -> Tensor:
    """Resize images to the nearest size that a model takes; images of a valid size are returned as they are.

    The model's map covers the whole image: resize it to the original H x W.

    Args:
        model: a timm model, or one with a timm model inside.
        images: float B x C x H x W.
    """
    size = find_sizes(model).nearest(images.shape[-2], images.shape[-1])
    if size == images.shape[-2:]:
        return images
    return resize(images, list(size), InterpolationMode.BICUBIC, antialias=True)


@torch.no_grad()
def _probe_sizes(model: nn.Module) -> Sizes:
    skeleton = _meta_copy(model)
    stated = (get_model_input_config(part)["input_size"] for part in model.modules() if _has_input_size(part))
    native = next((size for size in stated if _accepts(skeleton, *size)), None)
    if native is None:
        return Sizes()
    channels, height, width = native
    takes = partial(_accepts, skeleton, channels)
    shorter = min(height, width)
    for step in (n for n in range(1, shorter) if height % n == width % n == 0):
        if takes(height + step, width + _FAR // step * step + step):
            sides = range(step, shorter, step)
            smallest = 0 if takes(step, step) else bisect.bisect_left(sides, True, key=lambda s: takes(s, s))
            return Sizes(step, (*sides, shorter)[smallest])
    return Sizes(only=(height, width))


def _has_input_size(part: Any) -> bool:
    return "input_size" in (getattr(part, "pretrained_cfg", None) or {})


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode on the meta device."""
    values: Any = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        shape = torch.empty_like(tensor, device="meta")
        values[id(tensor)] = nn.Parameter(shape, False) if isinstance(tensor, nn.Parameter) else shape
    return copy.deepcopy(model, values).eval()


def _accepts(skeleton: nn.Module, channels: int, height: int, width: int) -> bool:
    weight = next(skeleton.parameters())
    try:
        skeleton(weight.new_zeros(1, channels, height, width))
    except Exception:  # networks raise anything
        return False
    return True

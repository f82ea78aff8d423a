"""A dilated backbone with fully-convolutional heads, and its loss, equal to MMSegmentation 1.2.2.

Parameters have MMSegmentation's names: its tools load the state dict of a network with a ResNet.

Dimensions: B images, C classes, H x W pixels, h x w cells of the map.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.masks import IGNORE
from training.transfer.backbones import channels_first, create_maps
from training.transfer.recompute import recompute_first_stage

__all__ = ["FCN", "FCNHead", "Head", "Output", "create_backbone", "pixel_loss"]


Average = Literal["all", "labelled"]


@dataclass(frozen=True)
class Head:
    """Settings of a fully-convolutional head."""

    channels: int
    """Channels of the 3 x 3 convolutions."""
    convs: int = 2
    """Number of convolutions, each followed by BatchNorm and ReLU."""
    dilation: int = 1
    """Dilation of the convolutions."""
    concat_input: bool = False
    """Concatenate the head's input, followed by one more convolution."""
    dropout: float = 0.0
    """Rate of channel dropout before the classifier."""


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class FCNHead(nn.Module):
    """Convolutions and a 1 x 1 classifier on a feature map."""

    def __init__(self, inputs: int, classes: int, form: Head) -> None:
        """Create the layers, initialised as in MMSegmentation.

        Args:
            inputs: channels of the feature map.
            classes: C.
            form: settings of the layers.
        """
        super().__init__()
        widths = [inputs, *[form.channels] * form.convs]
        self.convs = nn.Sequential(*(_ConvNorm(*pair, form.dilation) for pair in itertools.pairwise(widths)))
        self.conv_cat = _ConvNorm(inputs + form.channels, form.channels) if form.concat_input else None
        self.dropout = nn.Dropout2d(form.dropout)
        self.conv_seg = nn.Conv2d(form.channels, classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map B x channels x h x w to logits B x C x h x w."""
        features = self.convs(x)
        if self.conv_cat is not None:
            features = self.conv_cat(torch.cat([x, features], dim=1))
        return self.conv_seg(self.dropout(features))


@dataclass(frozen=True)
class Output:
    """Logits of a batch."""

    logits: Tensor
    """B x C x h x w."""
    auxiliary: Tensor | None
    """Those of the auxiliary head, if any; in training only."""


class FCN(nn.Module):
    """A backbone, a head on its last feature map, and optionally an auxiliary head on the one before."""

    def __init__(
        self, backbone: Any, classes: int, head: Head, auxiliary: Head | None = None, align_corners: bool = True
    ) -> None:
        """Add heads to a backbone.

        Args:
            backbone: of :func:`create_backbone`.
            classes: C.
            head: on the last map.
            auxiliary: on the map before, if any.
            align_corners: of the bilinear resizing of logits.
        """
        super().__init__()
        channels = backbone.feature_info.channels()
        recompute_first_stage(backbone)
        self.backbone = backbone
        self.decode_head = FCNHead(channels[-1], classes, head)
        self.auxiliary_head = FCNHead(channels[-2], classes, auxiliary) if auxiliary else None
        self.classes, self.align_corners = classes, align_corners

    def forward(self, x: Tensor) -> Output:
        """Map normalised images, B x 3 x H x W, to logits at the strides of the maps."""
        maps = channels_first(self.backbone, self.backbone(x))
        auxiliary = self.auxiliary_head(maps[-2]) if self.auxiliary_head and self.training else None
        return Output(self.decode_head(maps[-1]), auxiliary)

    def upsample(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Resize logits, B x C x h x w, to B x C x H x W."""
        return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=self.align_corners)


def create_backbone(name: str, output_stride: int, *, pretrained: bool = True, **kwargs: Any) -> Any:
    """Create a timm model that returns its last two feature maps, the last one with the given stride.

    The first block of a dilated stage keeps the dilation of the stage before (MMSegmentation's
    ``contract_dilation``), as in timm's dilated ResNets.

    Args:
        name: see :func:`slotcon_hub.models.loading.name_for_timm`.
        output_stride: stride of the last map in pixels.
        pretrained: False for random weights.
        **kwargs: of ``timm.create_model``, such as ``out_indices`` for more maps.

    Raises:
        ValueError: there is no such model, its weights do not fill it, or it has no map of this stride.
    """
    kwargs = {"out_indices": (-2, -1), **kwargs}
    backbone, _ = create_maps(name, pretrained=pretrained, output_stride=output_stride, **kwargs)
    stride = backbone.feature_info.reduction()[-1]
    if stride != output_stride:
        raise ValueError(
            f"{name} has a last map of stride {stride}, not {output_stride}, and cannot be dilated: use a ResNet "
            "or another timm model with output_stride"
        )
    return backbone


def pixel_loss(logits: Tensor, truth: Tensor, *, align_corners: bool, average: Average = "all") -> Tensor:
    """Compute the cross-entropy summed over labelled pixels, divided by the number of pixels.

    Logits are resized image by image, to need memory for only one full-size map.

    Args:
        logits: B x C x h x w.
        truth: integers B x H x W, in [0, C), or 255 for pixels without a label.
        align_corners: of the bilinear resizing.
        average: "all" divides by all pixels, as MMSegmentation's default and the paper's recipes; "labelled" by
            labelled pixels, as torch's mean, but 0 if there are none.
    """
    pixels = truth.numel() if average == "all" else (truth != IGNORE).sum().clamp(min=1)
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return _ResizedCrossEntropy.apply(logits, truth, align_corners) / pixels


class _ResizedCrossEntropy(torch.autograd.Function):
    """Sum over labelled pixels; the forward also computes the gradient, image by image."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor, align_corners: bool) -> Tensor:
        total, gradients = logits.new_zeros(()), []
        for one, labels in zip(logits.split(1), truth.split(1), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                one = one.detach().requires_grad_(ctx.needs_input_grad[0])
                scores = F.interpolate(one, labels.shape[1:], mode="bilinear", align_corners=align_corners)
                loss = F.cross_entropy(scores, labels.long(), ignore_index=IGNORE, reduction="sum")
            if ctx.needs_input_grad[0]:
                gradients += torch.autograd.grad(loss, one)
            total += loss.detach()
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None

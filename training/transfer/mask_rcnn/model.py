"""Mask R-CNN with a feature pyramid on any timm backbone with feature maps of strides 4, 8, 16 and 32 (or 16)."""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from training.transfer.backbones import architecture_of, channels_first, create_maps
from training.transfer.mask_rcnn.config import MaskRCNNConfig
from training.transfer.mask_rcnn.roi_heads import Detections, RoIHeads
from training.transfer.mask_rcnn.rpn import RPN
from training.transfer.mask_rcnn.target import Target
from training.transfer.recompute import recompute_first_stage

__all__ = ["MaskRCNN", "Pyramid"]

STRIDES = ([4, 8, 16, 32], [4, 8, 16, 16])
DIVISOR = 32  # sides of a batch are multiples of this


class Pyramid(nn.Module):
    """A backbone and a feature pyramid: five maps of strides 4 to 64 with C channels.

    Attributes:
        strides: of the five maps.
    """

    def __init__(self, config: MaskRCNNConfig, pretrained: bool) -> None:
        super().__init__()
        body, self.loaded = create_maps(config.backbone, pretrained=pretrained, **config.backbone_args)
        strides = body.feature_info.reduction()
        if strides not in STRIDES:
            raise ValueError(
                f"maps of {config.backbone!r} have strides {strides}: a pyramid needs {STRIDES[0]}, as in ResNets"
            )
        self.strides = [*strides, 2 * strides[-1]]
        if config.stride_in_1x1:
            _move_strides(body)
        if not pretrained:
            _reset_last_norms(body)
        recompute_first_stage(body, strides=(4, 8))
        self.body = body
        norm = nn.BatchNorm2d if config.norms else None
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), config.channels, LastLevelMaxPool(), norm)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map B x 3 x H x W to five maps B x C x H/s x W/s."""
        maps = channels_first(self.body, self.body(images))
        return list(self.fpn(OrderedDict((str(n), one) for n, one in enumerate(maps))).values())


def _move_strides(body: nn.Module) -> None:
    """Move the stride of each bottleneck from its 3 x 3 to its first 1 x 1 convolution."""
    block: Any
    for block in body.modules():
        if hasattr(block, "conv3") and block.conv2.stride != (1, 1):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def _reset_last_norms(body: nn.Module) -> None:
    """Initialise the last BatchNorm of residual branches to 1, as in Detectron2; timm initialises it to 0."""
    for norm in body.modules():
        if isinstance(norm, nn.BatchNorm2d) and not norm.weight.any():
            nn.init.ones_(norm.weight)


class MaskRCNN(nn.Module):
    """The detector, with parameter names of torchvision's Mask R-CNN.

    Attributes:
        loaded: sentences that report loaded and random weights.
    """

    def __init__(self, config: MaskRCNNConfig, *, pretrained: bool = False) -> None:
        """Create the network.

        Args:
            config: architecture, sampling and thresholds.
            pretrained: load the backbone's weights; all others are random.

        Raises:
            ValueError: there is no such backbone, it has no weights, or its maps have other strides.
        """
        super().__init__()
        self.backbone = Pyramid(config, pretrained)
        architecture, args = architecture_of(self.backbone.body)
        self.config = replace(config, backbone=architecture, backbone_args=args)
        self.rpn = RPN(config, self.backbone.strides)
        self.roi_heads = RoIHeads(config, self.backbone.strides[:4])
        others = len(self.state_dict()) - len(self.backbone.body.state_dict())
        self.loaded = [
            *self.backbone.loaded,
            f"random: the {others} tensors of pyramid, proposals, boxes and masks",
        ]

    def batch(self, images: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalise images, and zero-pad them at the right and bottom to one size, a multiple of 32.

        Args:
            images: 3 x H x W each, RGB, 0-255.

        Returns:
            B x 3 x H' x W', and the heights and widths without padding.
        """
        weight = next(self.parameters())
        mean, std = (weight.new_tensor(of).view(3, 1, 1) for of in (self.config.mean, self.config.std))
        sizes = [(one.shape[1], one.shape[2]) for one in images]
        height, width = (-(-max(side) // DIVISOR) * DIVISOR for side in zip(*sizes, strict=True))
        batch = weight.new_zeros(len(images), 3, height, width)
        for place, one in zip(batch, images, strict=True):
            place[:, : one.shape[1], : one.shape[2]] = (one.to(weight) - mean) / std
        return batch, sizes

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """Compute the five losses in train mode, with targets; or detections in eval mode.

        Args:
            images: 3 x H x W each, RGB, 0-255, of any sizes.
            targets: the objects of each image.

        Returns:
            A dict of scalar losses, to be summed; or a list of :class:`Detections`, in pixels of ``images``.
        """
        batch, sizes = self.batch(images)
        maps = self.backbone(batch)
        proposals, losses = self.rpn(maps, sizes, targets)
        boxes = [box for box, _ in proposals]
        if targets is not None:
            return self.roi_heads.losses(maps[:4], boxes, targets) | losses
        return self.roi_heads.detect(maps[:4], boxes, sizes)

    @torch.inference_mode()
    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """Detect objects, and rescale detections to ``sizes``, such as those before resizing."""
        seen = [(one.shape[1], one.shape[2]) for one in images]
        return [d.rescale(*both) for d, *both in zip(self(images), seen, sizes, strict=True)]

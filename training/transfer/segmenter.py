"""A small semantic segmentation network on any timm backbone with feature maps."""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slotcon_hub.models.filled import create_filled
from slotcon_hub.models.loading import name_for_timm
from training.transfer.backbones import MAPS, channels_first

__all__ = ["Segmenter"]


class Segmenter(nn.Sequential):
    """A timm backbone with a 3 x 3 convolution to class logits on each of its last four feature maps."""

    def __init__(self, model: str, classes: int, pretrained: bool = False) -> None:
        backbone = create_filled(name_for_timm(model), pretrained, features_only=True, out_indices=MAPS)[0]
        channels = backbone.feature_info.channels()
        super().__init__(backbone, nn.ModuleList(nn.Conv2d(c, classes, 3, padding=1) for c in channels))
        self.pretrained_cfg = timm.data.resolve_data_config({}, model=backbone)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images, B x 3 x H x W, to logits at the stride s of the first map, B x C x H/s x W/s."""
        layers: Any = self[1]
        maps = channels_first(self[0], self[0](x))
        scores = (layer(x) for layer, x in zip(layers, maps, strict=True))
        return torch.stack([F.interpolate(s, maps[0].shape[2:], mode="bilinear") for s in scores]).sum(0)

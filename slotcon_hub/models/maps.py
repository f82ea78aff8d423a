"""The dense features of any timm model: images in, one map of features out.

Dimensions: B images, C channels, H x W pixels, h x w cells of the map, S side of an image in pixels.
"""

from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from slotcon_hub.models.backbone import headless_args, intermediate_map, probe_feature_map
from slotcon_hub.models.filled import create_filled
from slotcon_hub.models.loading import name_for_timm
from slotcon_hub.models.sizes import find_sizes, resize_to_model

__all__ = ["MapModel", "load_map"]


class MapModel(nn.Module):
    """A frozen timm model that makes a map of any image: of a ResNet the last map, of a transformer the tokens."""

    def __init__(self, model: nn.Module) -> None:
        """Take a timm model without its head.

        Raises:
            ValueError: it has no map.
        """
        super().__init__()
        self.channels, self.returns_map = probe_feature_map(model)
        self.model = model.eval()
        config = resolve_model_data_config(model)
        self.mean, self.std = config["mean"], config["std"]

    def standardize(self, images: Tensor) -> Tensor:
        """uint8 B x 3 x H x W to float32, on the model's device, of a size that the model takes."""
        device = next(self.model.parameters()).device
        return resize_to_model(self.model, normalize(images.to(device).float() / 255, self.mean, self.std))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 B x 3 x H x W to the float32 B x C x h x w map, which covers the images whole."""
        images = self.standardize(images)
        return (self.model(images) if self.returns_map else intermediate_map(self.model, images)).float()

    @torch.inference_mode()
    def cells(self, size: int) -> tuple[int, int]:
        """h and w of the map of an S x S image, found by making one."""
        height, width = self(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[2:]
        return height, width

    def describe(self, size: int) -> dict[str, Any]:
        """What decides the numbers measured on the maps of S x S images, for a file of results."""
        height, width = self.cells(size)
        taken = find_sizes(self.model).nearest(size, size)
        return {
            "channels": self.channels,
            "input": list(taken),
            "map": [height, width],
            "stride": round(taken[0] / height, 3),
            "sizes": f"the model takes images {find_sizes(self.model)}",
            "mean": list(self.mean),
            "std": list(self.std),
        }


def load_map(name: str, size: int, *, pretrained: bool = True) -> MapModel:
    """Make a timm model that returns its map, with its weights or, asked for, with random ones.

    Args:
        name: as for :func:`slotcon_hub.models.loading.name_for_timm`; of a prototype model the map is that of the
            projections.
        size: S of the images it is for; models whose parameters depend on it are made for it, where they can be.
        pretrained: False for random weights.

    Raises:
        ValueError: there is no such model, or it has no weights for all of its tensors, or no map.
    """
    try:
        found = name_for_timm(name)
        arguments = headless_args(found, size)
        if "dynamic_img_size" in arguments:  # it takes other sizes as they come, but is made for few
            del arguments["img_size"]
        model = create_filled(found, pretrained, **arguments)[0]
    except Exception as error:  # timm raises errors of many kinds
        raise ValueError(f"{name} could not be loaded: {' '.join(str(error).split())}") from None
    try:
        return MapModel(model)
    except ValueError as error:
        raise ValueError(f"{name} has no map: {error}") from None

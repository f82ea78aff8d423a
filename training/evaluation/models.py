"""The models that are evaluated: any of timm's, or what a run exported, with weights or not at all.

Dimensions: B images, K prototypes, h x w cells of the map.
"""

from typing import Any

import timm
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import normalize

from slotcon_hub.models.layers import PrototypeNetwork
from slotcon_hub.models.loading import name_for_timm
from slotcon_hub.models.prototype_model import SlotConPrototypes
from slotcon_hub.models.sizes import resize_to_model

__all__ = ["load", "similarities", "standardize"]


def load(name: str, *, pretrained: bool = True, **kwargs: Any) -> Any:
    """Make a timm model without a classifier, in eval mode, with its weights or, asked for, with random ones.

    Args:
        name: as for :func:`slotcon_hub.models.loading.name_for_timm`.
        pretrained: False for random weights.
        **kwargs: of ``timm.create_model``.

    Raises:
        ValueError: there is no such model, or it has no weights.
    """
    try:
        return timm.create_model(name_for_timm(name), pretrained=pretrained, num_classes=0, **kwargs).eval()
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"{name} could not be loaded: {' '.join(str(error).split())}") from None


def standardize(model: Any, images: Tensor) -> Tensor:
    """uint8 B x 3 x H x W to float32, on the model's device, with its mean and deviation."""
    device = next(model.parameters()).device
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    return normalize(images.to(device).float() / 255, mean, std)


@torch.inference_mode()
def similarities(model: SlotConPrototypes, images: Tensor) -> Tensor:
    """Cosine similarity of every cell with every prototype, in float32 even where autocast reigns.

    Args:
        model: of :func:`slotcon_hub.concepts.inference.load_prototypes`.
        images: float32 B x 3 x H x W, standardised; resized if the model does not take their size.

    Returns:
        B x K x h x w in [-1, 1].
    """
    return PrototypeNetwork.forward(model, resize_to_model(model, images)).scores

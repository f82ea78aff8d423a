"""Loading of models to evaluate: timm models and exports of runs, with weights or as random-init baselines.

Dimensions: B images, K prototypes, h x w cells of the map.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import normalize

from slotcon_hub.models.filled import create_filled
from slotcon_hub.models.layers import PrototypeNetwork
from slotcon_hub.models.loading import name_for_timm
from slotcon_hub.models.prototype_model import SlotConPrototypes
from slotcon_hub.models.sizes import resize_to_model

__all__ = ["load", "similarities", "standardize"]


def load(name: str, *, pretrained: bool = True, **kwargs: Any) -> Any:
    """Create a timm model without classifier, in eval mode.

    Args:
        name: see :func:`slotcon_hub.models.loading.name_for_timm`.
        pretrained: False for random weights.
        **kwargs: of ``timm.create_model``.

    Raises:
        ValueError: there is no such model, or it has no weights for all of its tensors.
    """
    try:
        model = create_filled(name_for_timm(name), pretrained, num_classes=0, **kwargs)[0]
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"{name} could not be loaded: {' '.join(str(error).split())}") from None
    return model.eval()


def standardize(model: Any, images: Tensor) -> Tensor:
    """Normalise uint8 B x 3 x H x W to float32 by the model's mean and standard deviation, on its device."""
    device = next(model.parameters()).device
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    return normalize(images.to(device).float() / 255, mean, std)


@torch.inference_mode()
def similarities(model: SlotConPrototypes, images: Tensor) -> Tensor:
    """Compute the cosine similarity of every cell with every prototype, in float32 even under autocast.

    Args:
        model: of :func:`slotcon_hub.concepts.inference.load_prototypes`.
        images: float32 B x 3 x H x W, standardised; resized if the size is not valid for the model.

    Returns:
        B x K x h x w in [-1, 1].
    """
    return PrototypeNetwork.forward(model, resize_to_model(model, images)).scores

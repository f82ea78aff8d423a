"""Load a prototype model by name, prepare images, and compute its dense maps.

Dimensions: B images, K prototypes, D channels, h x w cells of the map, H x W pixels, S side of a crop.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import normalize, resize

from slotcon_hub.concepts.segments import Segment, describe_segments, group_map
from slotcon_hub.concepts.stopwatch import Stopwatch
from slotcon_hub.images import resize_and_center_crop
from slotcon_hub.models.layers import PrototypeNetwork
from slotcon_hub.models.loading import is_known, load
from slotcon_hub.models.prototype_model import SlotConPrototypes
from slotcon_hub.models.sizes import resize_to_model

__all__ = ["CenterCrop", "dense_maps", "load_prototypes", "segment_image", "weights_digest"]


def load_prototypes(name: str) -> SlotConPrototypes:
    """Load a prototype model with its weights, in eval mode, with dense similarities as output.

    Args:
        name: as for :func:`slotcon_hub.models.loading.load`, such as ``slotcon_r50_proto.coco_800ep``.

    Raises:
        ValueError: there are no such weights, they cannot be downloaded, or they are not of a prototype model.
        OSError: a file is missing.
    """
    architecture = name.partition(".")[0]
    if is_known(name) and not architecture.endswith("_proto"):
        proto = f"{architecture}_proto"
        other = name.replace(architecture, proto) if timm.is_model(proto) else "such as slotcon_r50_proto"
        raise ValueError(f"{name} is a backbone without prototypes: use a *_proto model, {other}")
    try:
        model: Any = load(name, "prototypes", global_pool="")
    except RuntimeError as error:  # also of timm and torch, in several lines
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(model, SlotConPrototypes) or not model.num_classes:
        raise ValueError(f"{name} holds no prototypes: give the export/prototypes of a run, or a *_proto model")
    return model.eval()


@dataclass(frozen=True)
class CenterCrop:
    """The evaluation transform of a model: resize the short side, then crop the central square."""

    resize: int
    """Short side, in pixels."""
    side: int
    """S, in pixels."""
    interpolation: str
    """"bicubic" or "bilinear", antialiased."""

    @classmethod
    def from_model(cls, model: SlotConPrototypes) -> "CenterCrop":
        """From a model's configuration: a size of 224 pixels with ``crop_pct`` 0.875 gives a short side of 256."""
        config = resolve_model_data_config(model)
        side = config["input_size"][-1]
        return cls(math.floor(side / config["crop_pct"]), side, config["interpolation"])

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 3 x H x W to uint8 3 x S x S."""
        return resize_and_center_crop(image, self.resize, self.side, InterpolationMode(self.interpolation))


@torch.inference_mode()
def dense_maps(
    model: SlotConPrototypes, images: Tensor, precision: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Compute projections and similarities of all cells, in float32.

    Args:
        model: in eval mode.
        images: uint8 B x 3 x H x W, resized to the nearest size that the model takes.
        precision: of the layers: float32, or bfloat16 by autocast.

    Returns:
        B x D x h x w projections, and B x K x h x w similarities in [-1, 1].
    """
    device = next(model.parameters()).device
    config = resolve_model_data_config(model)
    images = normalize(images.to(device).float() / 255, config["mean"], config["std"])
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        dense = PrototypeNetwork.forward(model, resize_to_model(model, images))
    return dense.z, dense.scores


def segment_image(
    model: SlotConPrototypes,
    image: Tensor,
    *,
    size: int | None = None,
    precision: torch.dtype = torch.float32,
    watch: Stopwatch | None = None,
) -> tuple[Tensor, list[Segment]]:
    """Divide a whole image into segments.

    Args:
        model: in eval mode.
        image: uint8 3 x H x W.
        size: short side, in pixels, to which larger images are shrunk for the network.
        precision: of the network, float32 or bfloat16.
        watch: measures the seconds of "network" and "segments".

    Returns:
        H x W prototype indices, and the segments, the largest first.
    """
    watch = watch or Stopwatch(next(model.parameters()).device)
    height, width = image.shape[1:]
    if size is not None and size < min(height, width):
        image = resize(image, [size], InterpolationMode(CenterCrop.from_model(model).interpolation), antialias=True)
    with watch.measure("network"):
        scores = dense_maps(model, image[None], precision)[1]
    with watch.measure("segments"):
        groups, similarities = group_map(scores, (height, width))
        return groups[0].cpu(), describe_segments(groups[0], similarities[0])


def weights_digest(model: torch.nn.Module) -> str:
    """Eight bytes, in hexadecimal, that differ for other weights: what is stored names the model that made it."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

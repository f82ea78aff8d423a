"""What the page shows of one image by one model: groups, similarities and principal components.

Dimensions: K prototypes, D channels, h x w cells of the map, H x W pixels as displayed.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from slotcon_hub.concepts.components import fit_components
from slotcon_hub.concepts.drawing import colors, draw_map, heat
from slotcon_hub.concepts.inference import CenterCrop, dense_maps
from slotcon_hub.concepts.segments import Segment, describe_segments, group_map
from slotcon_hub.images import EncodedImage
from slotcon_hub.models.prototype_model import SlotConPrototypes
from slotcon_hub.models.sizes import find_sizes

__all__ = ["SIZES", "Analysis", "analyze", "decode_for_display"]

SIZES = 64, 1024
"""Smallest and largest short side of the network's input, in pixels."""
_LONGEST = 4 * SIZES[1]  # side of the network's input, for panoramas
_KEPT = 2048  # longest side of a decoded image: more is not displayed, and costs memory for each visitor
_DISPLAYED = 640, 1024  # longest side of what is displayed, at least and at most


@dataclass(frozen=True)
class Analysis:
    """One image as one model sees it, for as long as a visitor looks at it."""

    image: np.ndarray
    """uint8 H x W x 3."""
    groups: np.ndarray
    """H x W prototype indices."""
    segments: list[Segment]
    """The largest first."""
    scores: Tensor
    """float32 K x h x w similarities, in [-1, 1], on the CPU."""
    components: np.ndarray
    """uint8 H x W x 3: the first three principal components of the projections."""

    def overlay(self) -> Image.Image:
        """The image with the colours, outlines and numbers of its segments."""
        return draw_map(self.image, self.groups, self.segments, colors(len(self.scores)))

    def principal_components(self) -> Image.Image:
        """The principal components as colours."""
        return Image.fromarray(self.components)

    def similarity_map(self, prototype: int) -> tuple[Image.Image, float, float]:
        """Similarities with a prototype, from dark to bright, and the smallest and the largest of them."""
        size = self.groups.shape
        values = F.interpolate(self.scores[None, prototype, None], size, mode="bilinear")[0, 0].numpy()
        least, most = float(values.min()), float(values.max())
        return heat((values - least) / max(most - least, 1e-12)), least, most

    def segment(self, prototype: int) -> Segment | None:
        """The segment of a prototype, if it has one in this image."""
        return next((segment for segment in self.segments if segment.prototype == prototype), None)


def decode_for_display(data: bytes) -> Tensor:
    """Decode an encoded image, shrunk if its long side is longer than 2048 pixels: uint8 3 x H x W.

    Raises:
        OSError: it is no image, is damaged or too large.
    """
    encoded = EncodedImage(data)
    longest = max(encoded.height, encoded.width)
    image = encoded.decode(reduction=next((n for n in (8, 4, 2) if longest >= n * _KEPT), 1))
    return _scaled(image, min(_KEPT / max(image.shape[1:]), 1))


@torch.inference_mode()
def analyze(model: SlotConPrototypes, image: Tensor, size: int, precision: torch.dtype = torch.float32) -> Analysis:
    """Apply a model to an image.

    Args:
        model: in eval mode.
        image: uint8 3 x H x W, of :func:`decode_for_display`.
        size: short side in pixels to which the image is resized for a network that takes more than one size.
        precision: of the network, float32 or bfloat16.
    """
    taken = image
    if find_sizes(model).only is None:
        interpolation = InterpolationMode(CenterCrop.from_model(model).interpolation)
        taken = resize(image, [size], interpolation, max_size=_LONGEST, antialias=True)
    z, scores = dense_maps(model, taken[None], precision)
    longest = max(image.shape[1:])
    displayed = _scaled(image, min(max(longest, _DISPLAYED[0]), _DISPLAYED[1]) / longest)
    z = z[0].cpu()
    shape = displayed.shape[1], displayed.shape[2]
    groups, similarities = group_map(scores, shape)
    components = fit_components([z]).project(z, shape).mul(255).round().byte()
    return Analysis(
        displayed.permute(1, 2, 0).numpy(),
        groups[0].cpu().numpy(),
        describe_segments(groups[0], similarities[0]),
        scores[0].cpu(),
        components.permute(1, 2, 0).numpy(),
    )


def _scaled(image: Tensor, factor: float) -> Tensor:
    size = [max(round(side * factor), 1) for side in image.shape[1:]]
    return image if factor == 1 else resize(image, size, InterpolationMode.BICUBIC, antialias=True)

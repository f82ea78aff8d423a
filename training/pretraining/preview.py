"""What a run shows for itself: the groups that its prototypes find in images, and how well they fit masks."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from slotcon_hub import SlotCon
from slotcon_hub.concepts.drawing import colors
from slotcon_hub.export.teacher import prototype_model
from slotcon_hub.images import decode
from training.data import scenes
from training.data.images import Images
from training.data.masks import LabeledImages
from training.evaluation.figures import draw_groups, matched_colors
from training.evaluation.metrics import Segmentation
from training.evaluation.segmentation import evaluate, segment

__all__ = ["Showcase"]

SHOWN = 8


@dataclass(frozen=True)
class Showcase:
    """Images to show, and where there are masks, held-out images to measure on."""

    images: list[Tensor]
    """uint8 3 x H x W each, of one size."""
    masks: list[Tensor] | None = None
    """uint8 H x W each."""
    held_out: scenes.Scenes | None = None

    @classmethod
    def of_scenes(cls, held_out: scenes.Scenes) -> "Showcase":
        """Show and measure the validation part of the embedded scenes."""
        pairs = itertools.islice(LabeledImages(held_out.val_images, held_out.val_masks), SHOWN)
        images, masks = zip(*pairs, strict=True)
        return cls(list(images), list(masks), held_out)

    @classmethod
    def of_images(cls, images: Images, size: int) -> "Showcase":
        """Show the centres of some readable images of the data, ``size`` pixels a side; measure nothing."""
        shown: list[Tensor] = []
        for index in np.linspace(0, len(images) - 1, min(len(images), 3 * SHOWN)).astype(int):
            try:
                image = decode(images.read(int(index)))
            except OSError:
                continue
            image = resize(image, [size], InterpolationMode.BICUBIC, antialias=True)
            shown.append(center_crop(image, [size, size]))
        return cls(shown[:: max(len(shown) // SHOWN, 1)][:SHOWN])

    def measure(self, slotcon: SlotCon) -> Segmentation | None:
        """Segment the held-out images with the teacher's prototypes, and match them with the classes."""
        if self.held_out is None:
            return None
        pairs = LabeledImages(self.held_out.val_images, self.held_out.val_masks)
        groups = slotcon.config.num_prototypes
        return evaluate(prototype_model(slotcon, global_pool=""), pairs, groups, len(scenes.CLASSES))

    def draw(self, slotcon: SlotCon, found: Segmentation | None, target: Path) -> None:
        """Draw images, true masks and discovered groups; a group matched with a class takes its colour."""
        groups = segment(prototype_model(slotcon, global_pool=""), torch.stack(self.images)).cpu().numpy()
        palette = colors(slotcon.config.num_prototypes)
        rows = {"images": [p.permute(1, 2, 0).numpy() for p in self.images]}
        if self.masks is not None and found is not None:
            rows["true classes"] = [scenes.PALETTE[mask.numpy()] for mask in self.masks]
            palette = matched_colors(found.match, scenes.PALETTE)
        rows["discovered groups"] = [palette[group] for group in groups]
        draw_groups(rows, target)

"""What a run shows for itself: the groups that its prototypes find in pictures, and how well they fit masks."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from slotcon_hub import SlotCon
from slotcon_hub.drawing import colors
from slotcon_hub.export import prototype_model
from slotcon_hub.pictures import decode
from training import scenes
from training.evaluation.labeled import LabeledPictures
from training.evaluation.metrics import Segmentation
from training.evaluation.segmentation import evaluate, segment
from training.pictures import Pictures
from training.report import draw_groups, matched_colors

__all__ = ["Showcase"]

SHOWN = 8


@dataclass(frozen=True)
class Showcase:
    """Pictures to show, and where there are masks, held-out pictures to measure on."""

    pictures: list[Tensor]
    """uint8 3 x H x W each, of one size."""
    masks: list[Tensor] | None = None
    """uint8 H x W each."""
    held_out: scenes.Scenes | None = None

    @classmethod
    def of_scenes(cls, held_out: scenes.Scenes) -> "Showcase":
        """Show and measure the validation part of the embedded scenes."""
        pairs = itertools.islice(LabeledPictures(held_out.val_images, held_out.val_masks), SHOWN)
        pictures, masks = zip(*pairs, strict=True)
        return cls(list(pictures), list(masks), held_out)

    @classmethod
    def of_pictures(cls, pictures: Pictures, size: int) -> "Showcase":
        """Show the centres of some readable pictures of the data, ``size`` pixels a side; measure nothing."""
        shown: list[Tensor] = []
        for index in np.linspace(0, len(pictures) - 1, min(len(pictures), 3 * SHOWN)).astype(int):
            try:
                picture = decode(pictures.read(int(index)))
            except OSError:
                continue
            picture = resize(picture, [size], InterpolationMode.BICUBIC, antialias=True)
            shown.append(center_crop(picture, [size, size]))
        return cls(shown[:: max(len(shown) // SHOWN, 1)][:SHOWN])

    def measure(self, slotcon: SlotCon) -> Segmentation | None:
        """Segment the held-out pictures with the teacher's prototypes, and match them with the classes."""
        if self.held_out is None:
            return None
        pairs = LabeledPictures(self.held_out.val_images, self.held_out.val_masks)
        groups = slotcon.config.num_prototypes
        return evaluate(prototype_model(slotcon, global_pool=""), pairs, groups, len(scenes.CLASSES))

    def draw(self, slotcon: SlotCon, found: Segmentation | None, target: Path) -> None:
        """Draw pictures, true masks and discovered groups; a group matched with a class takes its colour."""
        groups = segment(prototype_model(slotcon, global_pool=""), torch.stack(self.pictures)).cpu().numpy()
        palette = colors(slotcon.config.num_prototypes)
        rows = {"pictures": [p.permute(1, 2, 0).numpy() for p in self.pictures]}
        if self.masks is not None and found is not None:
            rows["true classes"] = [scenes.PALETTE[mask.numpy()] for mask in self.masks]
            palette = matched_colors(found.match, scenes.PALETTE)
        rows["discovered groups"] = [palette[group] for group in groups]
        draw_groups(rows, target)

"""Preview of a run: groups of pixels found by its prototypes, and their agreement with masks."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from slotcon_hub import SlotCon
from slotcon_hub.concepts.drawing import colors
from slotcon_hub.concepts.segments import group_map
from slotcon_hub.export.teacher import prototype_model
from slotcon_hub.images import ImageFiles, decode, limit_aspect_ratio
from slotcon_hub.models.sizes import resize_to_model
from training.data import scenes
from training.data.images import Images
from training.data.masks import LabeledImages
from training.evaluation.figures import NO_CLASS, draw_groups, matched_colors, paint, paint_over
from training.evaluation.metrics import Segmentation
from training.evaluation.models import standardize
from training.evaluation.segmentation import evaluate

__all__ = ["Showcase"]

SHOWN = 8
DRAWN = 384  # pixels of an image's shorter side, at most
LONGEST = 2  # largest aspect ratio; longer images are cropped
NAMED = 24  # prototypes in a legend, at most


@dataclass(frozen=True)
class Showcase:
    """Images to show, and if there are masks, held-out images for evaluation."""

    images: list[Tensor]
    """uint8 3 x H x W each."""
    size: int | None = None
    """Short side in pixels for the network; None for the original size."""
    masks: list[Tensor] | None = None
    """uint8 H x W each."""
    held_out: scenes.Scenes | None = None
    folder: Path | None = None
    """Of the images, if one folder holds them and no others."""

    @classmethod
    def of_scenes(cls, held_out: scenes.Scenes) -> "Showcase":
        """Show and evaluate the validation part of the embedded scenes."""
        pairs = itertools.islice(LabeledImages(held_out.val_images, held_out.val_masks), SHOWN)
        images, masks = zip(*pairs, strict=True)
        return cls(list(images), None, list(masks), held_out, held_out.val_images)

    @classmethod
    def of_images(cls, images: Images, size: int) -> "Showcase":
        """Show some readable images of the data, whole unless they are very long, without evaluation.

        Args:
            images: of the run.
            size: of a view, in pixels.
        """
        shown: list[Tensor] = []
        for index in np.linspace(0, len(images) - 1, min(len(images), 3 * SHOWN)).astype(int):
            try:
                image = decode(images.read(int(index)))
            except OSError:
                continue
            image = limit_aspect_ratio(image, LONGEST)
            if min(image.shape[1:]) > DRAWN:
                image = resize(image, [DRAWN], InterpolationMode.BICUBIC, antialias=True)
            shown.append(image)
        folders = images.folders if isinstance(images, ImageFiles) else ()
        folder = folders[0] if len(folders) == 1 else None
        return cls(shown[:: max(len(shown) // SHOWN, 1)][:SHOWN], size, folder=folder)

    def measure(self, slotcon: SlotCon) -> Segmentation | None:
        """Segment the held-out images by the teacher's prototypes, and match these with the classes."""
        if self.held_out is None:
            return None
        pairs = LabeledImages(self.held_out.val_images, self.held_out.val_masks)
        groups = slotcon.config.num_prototypes
        return evaluate(prototype_model(slotcon, global_pool=""), pairs, groups, len(scenes.CLASSES))

    def draw(self, slotcon: SlotCon, found: Segmentation | None, target: Path) -> None:
        """Draw images, true masks and discovered groups; a group has the colour of its matched class."""
        if not self.images:
            return
        images = [image.permute(1, 2, 0).numpy() for image in self.images]
        groups = [self._groups(slotcon, image) for image in self.images]
        rows = {"images": images}
        if self.masks is not None and found is not None:
            classes = matched_colors(range(len(scenes.CLASSES)), scenes.PALETTE)
            rows["true classes"] = [paint(mask.numpy(), classes) for mask in self.masks]
            palette = matched_colors(found.match, scenes.PALETTE)
            shown = {found.match[k] for group in groups for k in np.unique(group)}
            shown |= {c for mask in self.masks for c in mask.unique().tolist()}
            legend = {name: classes[c] for c, name in enumerate(scenes.CLASSES) if c in shown}
            legend |= {"no class": NO_CLASS} if -1 in shown else {}
            title = "discovered groups, in the colours of their matched classes"
        else:
            palette = matched_colors(range(slotcon.config.num_prototypes), colors(slotcon.config.num_prototypes))
            counts = np.bincount(np.concatenate([group.ravel() for group in groups]), minlength=len(palette))
            most = [int(k) for k in counts.argsort()[::-1] if counts[k]]
            legend = {f"prototype {k}": palette[k] for k in most[:NAMED]}
            title = "discovered groups" + (f" (below, the {NAMED} largest of {len(most)})" if most[NAMED:] else "")
        rows[title] = [paint_over(*pair, palette) for pair in zip(images, groups, strict=True)]
        draw_groups(rows, target, legend)

    @torch.inference_mode()
    def _groups(self, slotcon: SlotCon, image: Tensor) -> np.ndarray:
        """The prototype of each pixel of a uint8 3 x H x W image, H x W."""
        model = prototype_model(slotcon, global_pool="")
        height, width = image.shape[1:]
        if self.size is not None:
            image = resize(image, [self.size], InterpolationMode.BICUBIC, antialias=True)
        scores = model(resize_to_model(model, standardize(model, image[None])))
        return group_map(scores, (height, width))[0][0].cpu().numpy()

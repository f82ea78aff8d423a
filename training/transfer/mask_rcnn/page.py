"""A page of images with detections and ground truth side by side."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as coco_mask
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from slotcon_hub.concepts.drawing import colors
from slotcon_hub.files import atomic_write
from slotcon_hub.templates import render_template
from training.data.coco import CocoImages, Record
from training.transfer.mask_rcnn.evaluation import NAMES
from training.transfer.mask_rcnn.examples import read_test_image

__all__ = ["write_page"]


def write_page(
    path: Path,
    title: str,
    numbers: dict[str, Any],
    images: CocoImages,
    results: Sequence[dict[str, Any]],
    *,
    most: int = 24,
    least_score: float = 0.5,
) -> None:
    """Write a self-contained HTML file.

    Args:
        path: of the file.
        title: of the page.
        numbers: of :func:`training.transfer.mask_rcnn.evaluation.measure`.
        images: the ground truth.
        results: in COCO's format.
        most: maximum number of images, spread evenly.
        least_score: minimum score of drawn detections.
    """
    labels = {id: label for label, id in enumerate(images.category_ids)}
    chosen = np.linspace(0, len(images) - 1, min(most, len(images))).astype(int).tolist()
    by_image: dict[int, list[dict[str, Any]]] = {}
    for result in results:
        if result["score"] >= least_score:
            by_image.setdefault(result["image_id"], []).append(result)
    rows = []
    for record in (images[number] for number in chosen):
        pixels = torch.from_numpy(read_test_image(record).copy()).permute(2, 0, 1)
        found = by_image.get(record.id, [])
        masks = [coco_mask.decode(result["segmentation"]) for result in found]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (result["bbox"] for result in found)]
        own = [labels[result["category_id"]] for result in found]
        texts = [f"{images.classes[n]} {r['score']:.0%}" for n, r in zip(own, found, strict=True)]
        predicted = _draw(pixels, masks, corners, own, texts, len(images.classes))
        rows.append({"name": record.path.name, "found": predicted, "truth": _draw_truth(pixels, record, images)})
    page = render_template(
        Path(__file__).with_name("page.html"),
        title=title,
        names=NAMES,
        numbers=numbers,
        rows=rows,
        least=least_score,
    )
    with atomic_write(path) as new:
        new.write_text(page)


def _draw_truth(pixels: Tensor, record: Record, images: CocoImages) -> str:
    objects = [one for one in record.instances if not one.crowd]
    size = record.height, record.width
    masks = [one.bitmap(*size) for one in objects]
    own = [one.label for one in objects]
    return _draw(
        pixels, masks, [one.box for one in objects], own, [images.classes[n] for n in own], len(images.classes)
    )


def _draw(
    pixels: Tensor, masks: list[Any], boxes: list[Any], labels: list[int], texts: list[str], classes: int
) -> str:
    """Draw objects and return a JPEG as data URI."""
    if masks:
        palette = [tuple(color) for color in colors(classes).tolist()]
        own = [palette[label] for label in labels]
        pixels = draw_segmentation_masks(pixels, torch.from_numpy(np.stack(masks)).bool(), alpha=0.5, colors=own)
        corners = torch.tensor(boxes, dtype=torch.float32)
        limits = torch.tensor([pixels.shape[2], pixels.shape[1]] * 2) - 1
        pixels = draw_bounding_boxes(pixels, torch.minimum(corners.clamp(min=0), limits), texts, own, width=2)
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()

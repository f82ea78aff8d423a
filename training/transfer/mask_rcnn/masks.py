"""Object masks: targets of the mask head within boxes, and predictions pasted into the image."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from training.data.coco import rasterize
from training.transfer.mask_rcnn.target import Mask

__all__ = ["crop", "paste"]


def crop(masks: list[Mask], boxes: Tensor, side: int) -> Tensor:
    """Make the targets of the mask head: each object's mask on a grid within its box.

    Polygons are rasterized on the grid; bitmaps are averaged over its cells.

    Args:
        masks: N of them.
        boxes: N x 4.
        side: cells of the grid.

    Returns:
        bool N x side x side, on the device of the boxes.
    """
    grids = torch.zeros(len(masks), side, side, dtype=torch.bool)
    for grid, mask, box in zip(grids, masks, boxes.cpu(), strict=True):
        if isinstance(mask, np.ndarray):
            bitmap = torch.from_numpy(mask).float()[None, None]
            grid.copy_(roi_align(bitmap, [box[None]], side, 1.0, 0, True)[0, 0] >= 0.5)
        else:
            grid.copy_(torch.from_numpy(_draw_in_box(mask, box.numpy(), side)))
    return grids.to(boxes.device)


def _draw_in_box(polygons: list[np.ndarray], box: np.ndarray, side: int) -> np.ndarray:
    corner, size = box[:2], box[2:] - box[:2]
    cells = side / np.maximum(size, 0.1)  # per pixel; boxes count as at least 0.1 pixels wide
    return rasterize([((p.reshape(-1, 2) - corner) * cells).ravel() for p in polygons], side, side)


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Paste predictions of the mask head into the image.

    Args:
        masks: N x M x M probabilities.
        boxes: N x 4.
        size: height and width of the image.

    Returns:
        bool N x height x width: probability at least 0.5, sampled bilinearly at pixel centres.
    """
    found = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for image, mask, box in zip(found, masks, boxes, strict=True):  # only the region of each box
        left, top = (int(v) for v in (box[:2].floor() - 1).clamp(min=0))
        right, bottom = (int(v) for v in box[2:].ceil() + 1)
        part = image[top:bottom, left:right]  # the slice ends at the border
        y, x = (torch.arange(n, device=box.device, dtype=torch.float32) + 0.5 for n in part.shape)
        y, x = (y + top - box[1]) / (box[3] - box[1]) * 2 - 1, (x + left - box[0]) / (box[2] - box[0]) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        part.copy_(F.grid_sample(mask[None, None], grid[None].to(mask.dtype), align_corners=False)[0, 0] >= 0.5)
    return found

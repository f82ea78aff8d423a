"""The region proposal network: anchors, losses, proposals.

B images, A anchors per cell, N anchors of all levels, K proposals of an image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.rpn import RPNHead

from training.transfer.mask_rcnn import boxes as op
from training.transfer.mask_rcnn.config import MaskRCNNConfig
from training.transfer.mask_rcnn.target import Target

__all__ = ["RPN", "anchors_of_level", "cell_anchors"]

SIZES = (32, 64, 128, 256, 512)  # pixels per level; usual strides are 4, 8, 16, 32, 64
RATIOS = (0.5, 1.0, 2.0)  # height / width
LOW, HIGH = 0.3, 0.7  # IoU: below LOW background, from HIGH object
SAMPLED, OBJECTS = 256, 0.5  # anchors per image, and the maximum fraction of objects
NMS = 0.7
BEFORE_NMS = {True: 2000, False: 1000}  # boxes per level, in training and in test


def cell_anchors(size: float) -> Tensor:
    """Make the A x 4 anchors around the origin, not rounded to whole pixels, unlike torchvision's."""
    widths = [math.sqrt(size**2 / ratio) for ratio in RATIOS]
    sides = [(width, ratio * width) for width, ratio in zip(widths, RATIOS, strict=True)]
    return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])


def anchors_of_level(size: float, shape: tuple[int, int], stride: int, device: torch.device) -> Tensor:
    """Make the anchors of a map of H x W cells, float32 (H * W * A) x 4."""
    y, x = (torch.arange(0, n * stride, stride, dtype=torch.float32, device=device) for n in shape)
    y, x = (v.flatten() for v in torch.meshgrid(y, x, indexing="ij"))
    return (torch.stack([x, y, x, y], dim=1)[:, None] + cell_anchors(size).to(device)).flatten(0, 1)


class RPN(nn.Module):
    """A head shared by all levels, its losses and proposals."""

    def __init__(self, config: MaskRCNNConfig, strides: list[int]) -> None:
        super().__init__()
        self.head = RPNHead(config.channels, len(RATIOS))
        self.most, self.strides = config.proposals, strides
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def forward(
        self, maps: list[Tensor], sizes: list[tuple[int, int]], targets: list[Target] | None
    ) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Propose boxes.

        Args:
            maps: of all levels, B x C x H x W.
            sizes: height and width of each image, without its padding.
            targets: the objects of each image, in training.

        Returns:
            K x 4 boxes and K logits of each image, best first; and losses, empty without targets.
        """
        logits, deltas = self.head(maps)
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        anchors = [
            anchors_of_level(size, shape, stride, maps[0].device)
            for size, shape, stride in zip(SIZES, shapes, self.strides, strict=True)
        ]
        logits = [one.permute(0, 2, 3, 1).flatten(1) for one in logits]
        deltas = [one.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for one in deltas]
        losses = {} if targets is None else self._losses(logits, deltas, torch.cat(anchors), targets)
        with torch.no_grad():
            return self._propose(logits, deltas, anchors, sizes), losses

    def _losses(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: Tensor, targets: list[Target]
    ) -> dict[str, Tensor]:
        """Sum over sampled anchors, divided by the maximum number of sampled anchors."""
        every_logit, every_delta = torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
        classification = location = every_logit.new_zeros(())
        for logit, delta, target in zip(every_logit, every_delta, targets, strict=True):
            boxes, _ = target.tensors(anchors.device)
            with torch.no_grad():
                matched, labels = op.match(boxes, anchors, LOW, HIGH, low_quality=True)
                chosen = op.sample(labels, SAMPLED, OBJECTS)
                objects = chosen[labels[chosen] == 1]
            answer = labels[chosen].to(logit.dtype)
            classification = classification + F.binary_cross_entropy_with_logits(
                logit[chosen], answer, reduction="sum"
            )
            if len(objects):
                wanted = self.coder.encode_single(boxes[matched[objects]], anchors[objects])
                location = location + (delta[objects] - wanted).abs().sum()
        # DDP needs a gradient for each parameter, also in a batch without objects
        location = location + 0 * every_delta[:, :0].sum()
        sampled = SAMPLED * len(targets)
        return {"loss_rpn_cls": classification / sampled, "loss_rpn_loc": location / sampled}

    def _propose(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Take the top boxes of each level, apply NMS per level, and keep the best of all levels."""
        scores, boxes, levels = [], [], []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            best, where = logit.topk(min(BEFORE_NMS[self.training], logit.shape[1]), dim=1)
            best_deltas = delta.gather(1, where[..., None].expand(-1, -1, 4)).flatten(0, 1)
            decoded = self.coder.decode_single(best_deltas.float(), anchor[where.flatten()])
            scores.append(best)
            boxes.append(decoded.unflatten(0, where.shape))
            levels.append(torch.full_like(where[0], level))
        level_of, proposals = torch.cat(levels), []
        for score, box, size in zip(torch.cat(scores, 1), torch.cat(boxes, 1), sizes, strict=True):
            box = op.clip(box, size)
            keep = torch.isfinite(box).all(1) & torch.isfinite(score) & op.nonempty(box)
            box, score, group = box[keep], score[keep], level_of[keep]
            kept = op.suppress(box, score, group, NMS, self.most)
            proposals.append((box[kept], score[kept]))
        return proposals

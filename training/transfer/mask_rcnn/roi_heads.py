"""Box and mask heads: classes, boxes and masks of proposals.

B images, K classes, R regions of all images, F regions of objects, M cells of a mask's side (28).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

from training.transfer.mask_rcnn import boxes as op
from training.transfer.mask_rcnn import masks as mask_op
from training.transfer.mask_rcnn.config import MaskRCNNConfig
from training.transfer.mask_rcnn.target import Target
from training.transfer.recompute import run_recomputing_norms

__all__ = ["Detections", "RoIHeads", "pool_regions"]

OVERLAP = 0.5  # minimum IoU of a region with its object
OBJECTS = 0.25  # maximum fraction of objects among the regions of an image
NMS = 0.5
BOX_SIDE, MASK_SIDE = 7, 14  # cells of a pooled region
WIDTH = 1024  # of the fully connected layers


@dataclass
class Detections:
    """Detections in an image.

    Attributes:
        boxes: N x 4, float32.
        scores: N, best first.
        labels: N, int64.
        masks: N x M x M probabilities within the boxes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor

    def rescale(self, seen: tuple[int, int], size: tuple[int, int]) -> "Detections":
        """Rescale to an image of another size; boxes that become empty are dropped.

        Args:
            seen: height and width of the network's input.
            size: height and width of the target image.
        """
        (height, width), (seen_height, seen_width) = size, seen
        boxes = self.boxes.clone()
        boxes[:, 0::2] *= width / seen_width
        boxes[:, 1::2] *= height / seen_height
        boxes = op.clip(boxes, size)
        keep = op.nonempty(boxes)
        return Detections(boxes[keep], self.scores[keep], self.labels[keep], self.masks[keep])

    def bitmaps(self, size: tuple[int, int]) -> Tensor:
        """Paste the masks into the image, bool N x height x width."""
        return mask_op.paste(self.masks, self.boxes, size)


def pool_regions(maps: list[Tensor], strides: list[int], boxes: list[Tensor], side: int) -> Tensor:
    """Pool each region from the pyramid level that corresponds to its area: R x C x side x side.

    Args:
        maps: four levels.
        strides: of the levels.
        boxes: of each image.
        side: cells of a pooled region.
    """
    regions = torch.cat(boxes)
    image = torch.cat([torch.full_like(one[:, :1], n) for n, one in enumerate(boxes)])
    # at least float32: half precision is too coarse for box coordinates
    rois = torch.cat([image, regions], dim=1).to(torch.promote_types(maps[0].dtype, torch.float32))
    areas = (regions[:, 2] - regions[:, 0]) * (regions[:, 3] - regions[:, 1])
    level = (4 + torch.log2(areas.sqrt() / 224 + 1e-8)).floor().clamp(2, len(maps) + 1).long() - 2
    parts = [torch.where(level == n)[0] for n in range(len(maps))]
    pooled = [
        roi_align(one.to(rois.dtype), rois[part], side, 1 / stride, sampling_ratio=0, aligned=True)
        for one, stride, part in zip(maps, strides, parts, strict=True)
    ]
    return torch.cat(pooled)[torch.cat(parts).argsort()]


class BoxPredictor(nn.Module):
    """Linear layers for K + 1 logits, the background last, and four deltas per class."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 * classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map R x C to R x (K + 1) logits and R x 4K deltas."""
        return self.cls_score(features), self.bbox_pred(features)


class RoIHeads(nn.Module):
    """Box head and mask head, their losses and detections."""

    def __init__(self, config: MaskRCNNConfig, strides: list[int]) -> None:
        super().__init__()
        self.config, self.classes, self.strides = config, len(config.classes), strides
        channels = config.channels
        norm = nn.BatchNorm2d if config.norms else None
        shape = (channels, BOX_SIDE, BOX_SIDE)
        self.box_head = FastRCNNConvFCHead(shape, [channels] * config.box_convs, [WIDTH] * config.box_layers, norm)
        self.box_predictor = BoxPredictor(WIDTH, self.classes)
        self.mask_head = MaskRCNNHeads(channels, [channels] * 4, 1, norm)
        self.mask_predictor = MaskRCNNPredictor(channels, channels, self.classes)
        for layer in self.box_head:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.mask_predictor.mask_fcn_logits.weight, std=0.001)
        for layer in (self.mask_predictor.conv5_mask, self.mask_predictor.mask_fcn_logits):
            nn.init.zeros_(layer.bias)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def losses(self, maps: list[Tensor], proposals: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Compute the losses of classes, boxes and masks.

        Args:
            maps: the first four levels.
            proposals: boxes of each image.
            targets: objects of each image.
        """
        sampled = [self._sample(*one) for one in zip(proposals, targets, strict=True)]
        labels, matched = (torch.cat([getattr(s, name) for s in sampled]) for name in ("labels", "boxes"))
        regions = torch.cat([s.regions for s in sampled])
        logits, deltas = self._predict_boxes(maps, [s.regions for s in sampled])
        objects = torch.where(labels < self.classes)[0]
        chosen = deltas.unflatten(1, (-1, 4))[objects, labels[objects]]
        wanted = self.coder.encode_single(matched[objects], regions[objects])
        return {
            "loss_cls": F.cross_entropy(logits, labels),
            "loss_box_reg": (chosen - wanted).abs().sum() / len(labels),
            "loss_mask": self._mask_loss(maps, sampled),
        }

    @torch.no_grad()
    def _sample(self, proposals: Tensor, target: Target) -> "_Sampled":
        """Sample the training regions of an image from proposals and ground-truth boxes."""
        boxes, classes = target.tensors(proposals.device)
        regions = torch.cat([proposals, boxes])
        matched, is_object = op.match(boxes, regions, OVERLAP, OVERLAP, low_quality=False)
        chosen = op.sample(is_object, self.config.regions, OBJECTS)
        regions, matched, is_object = regions[chosen], matched[chosen], is_object[chosen]
        if not len(boxes):
            background = torch.full_like(matched, self.classes)
            return _Sampled(regions, background, torch.zeros_like(regions), [])
        labels = torch.where(is_object == 1, classes[matched], self.classes)
        masks = [target.masks[n] for n in matched[is_object == 1].tolist()]
        return _Sampled(regions, labels, boxes[matched], masks)

    def _mask_loss(self, maps: list[Tensor], sampled: "list[_Sampled]") -> Tensor:
        objects = [s.labels < self.classes for s in sampled]
        regions = [s.regions[one] for s, one in zip(sampled, objects, strict=True)]
        if not any(len(one) for one in regions):
            # BatchNorm, synchronised over processes, needs a region on each: a background one with zero loss.
            stand_in = [s.regions[:1] for s in sampled]
            return 0 * self._mask_logits(maps, stand_in).sum()
        labels = torch.cat([s.labels[one] for s, one in zip(sampled, objects, strict=True)])
        logits = self._mask_logits(maps, regions)
        logits = logits[torch.arange(len(labels), device=labels.device), labels]
        wanted = [mask_op.crop(s.masks, r, logits.shape[-1]) for s, r in zip(sampled, regions, strict=True)]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(wanted).to(logits.dtype))

    def _mask_logits(self, maps: list[Tensor], regions: list[Tensor]) -> Tensor:
        return self._run([self.mask_head, self.mask_predictor], MASK_SIDE, maps, regions)

    def _predict_boxes(self, maps: list[Tensor], regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.box_predictor(self._run([self.box_head], BOX_SIDE, maps, regions))

    def _run(self, layers: list[nn.Module], side: int, maps: list[Tensor], regions: list[Tensor]) -> Tensor:
        return run_recomputing_norms(layers, pool_regions(maps, self.strides, regions, side))

    def detect(self, maps: list[Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """Detect objects, in pixels of the network's input.

        Args:
            maps: the first four levels.
            proposals: boxes of each image.
            sizes: height and width of each image.
        """
        logits, deltas = self._predict_boxes(maps, proposals)
        boxes = self.coder.decode_single(deltas.float(), torch.cat(proposals)).unflatten(1, (-1, 4))
        lengths = [len(one) for one in proposals]
        parts = zip(boxes.split(lengths), logits.softmax(-1).split(lengths), sizes, strict=True)
        found = [self._best(*part) for part in parts]
        masks = self._mask_logits(maps, [one.boxes for one in found])
        labels = torch.cat([one.labels for one in found])
        chosen = masks[torch.arange(len(labels), device=labels.device), labels].sigmoid()
        return [
            replace(d, masks=m) for d, m in zip(found, chosen.split([len(d.boxes) for d in found]), strict=True)
        ]

    def _best(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Detections:
        """Threshold R x K x 4 boxes and R x (K + 1) scores, and apply NMS; masks are still empty."""
        finite = torch.isfinite(boxes).flatten(1).all(1) & torch.isfinite(scores).all(1)
        boxes, scores = op.clip(boxes[finite], size), scores[finite, :-1]
        region, label = torch.where(scores > self.config.score_threshold)
        boxes, scores = boxes[region, label], scores[region, label]
        keep = op.suppress(boxes, scores, label, NMS, self.config.detections)
        return Detections(boxes[keep], scores[keep], label[keep], scores.new_empty(0))


@dataclass
class _Sampled:
    """The training regions of an image.

    Attributes:
        regions: R x 4.
        labels: R, K for the background.
        boxes: R x 4, ground truth of the object with the largest IoU.
        masks: ground truth of the regions that are not background.
    """

    regions: Tensor
    labels: Tensor
    boxes: Tensor
    masks: list

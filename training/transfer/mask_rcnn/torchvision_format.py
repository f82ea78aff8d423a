"""Conversion of a detector to torchvision's Mask R-CNN."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from training.transfer.mask_rcnn.model import MaskRCNN
from training.transfer.mask_rcnn.roi_heads import WIDTH
from training.transfer.mask_rcnn.rpn import RATIOS, SIZES, cell_anchors

__all__ = ["to_torchvision", "torchvision_state"]


def torchvision_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict to torchvision's, whose class 0 is the background.

    Args:
        state: of a :class:`MaskRCNN` on a plain ResNet.
    """
    converted = dict(state)
    for kind in ("weight", "bias"):
        scores, boxes, masks = (
            f"roi_heads.{name}.{kind}"
            for name in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
        )
        converted[scores] = state[scores].roll(1, dims=0)  # our background is last
        converted[boxes] = torch.cat(
            [torch.zeros_like(state[boxes][:4]), state[boxes]]
        )  # ours has no background box
        converted[masks] = torch.cat([torch.zeros_like(state[masks][:1]), state[masks]])
    return converted


def to_torchvision(detector: MaskRCNN) -> TorchvisionMaskRCNN:
    """Create torchvision's model with the same weights, in eval mode; its labels start at 1.

    Detections differ slightly: torchvision resizes float images, aligns RoIs differently, and pastes masks at
    whole pixels.

    Args:
        detector: on a plain ResNet of torchvision, with norms.

    Raises:
        ValueError: the backbone is not a plain ResNet, or the heads have no norms.
    """
    config = detector.config
    make = getattr(resnet, config.backbone.partition(".")[0].replace("slotcon_r", "resnet"), None)
    if make is None or not config.norms:
        raise ValueError(
            f"torchvision has no Mask R-CNN like this one, on {config.backbone}: only on plain ResNets"
        )
    channels, classes = config.channels, len(config.classes)
    body = make(weights=None)
    layers = {f"layer{n}": str(n - 1) for n in range(1, 5)}
    widths = detector.backbone.body.feature_info.channels()
    backbone = BackboneWithFPN(body, layers, widths, channels, norm_layer=nn.BatchNorm2d)
    model = TorchvisionMaskRCNN(
        backbone,
        None,
        min_size=config.test_side,
        max_size=config.longest_side,
        image_mean=[value / 255 for value in config.mean],
        image_std=[value / 255 for value in config.std],
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in SIZES), (RATIOS,) * len(SIZES)),
        rpn_head=RPNHead(channels, len(RATIOS)),
        rpn_post_nms_top_n_test=config.proposals,
        box_head=FastRCNNConvFCHead(
            (channels, 7, 7), [channels] * config.box_convs, [WIDTH] * config.box_layers, nn.BatchNorm2d
        ),
        box_predictor=FastRCNNPredictor(WIDTH, classes + 1),
        mask_head=MaskRCNNHeads(channels, [channels] * 4, 1, nn.BatchNorm2d),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes + 1),
        box_score_thresh=config.score_threshold,
        box_detections_per_img=config.detections,
    )
    model.rpn.anchor_generator.cell_anchors = [cell_anchors(size) for size in SIZES]  # torchvision rounds its own
    model.load_state_dict(torchvision_state(detector.state_dict()))
    return model.eval()

"""A detector in the plain format of torchvision, for those who have torchvision alone."""

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
    """Turn a detector's state dict into torchvision's, whose first class is the background.

    Args:
        state: of a :class:`MaskRCNN` on a plain ResNet.
    """
    converted = dict(state)
    for kind in ("weight", "bias"):
        scores, boxes, masks = (
            f"roi_heads.{name}.{kind}"
            for name in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
        )
        converted[scores] = state[scores].roll(1, dims=0)  # the background is our last
        converted[boxes] = torch.cat([torch.zeros_like(state[boxes][:4]), state[boxes]])  # it has no box of its own
        converted[masks] = torch.cat([torch.zeros_like(state[masks][:1]), state[masks]])
    return converted


def to_torchvision(detector: MaskRCNN) -> TorchvisionMaskRCNN:
    """Make torchvision's model of the same weights, in eval mode; its labels count from 1.

    Its detections differ a little: it resizes images in floats, aligns regions otherwise, and pastes masks onto
    whole pixels.

    Args:
        detector: on a plain ResNet of torchvision, with norms.

    Raises:
        ValueError: torchvision has no such backbone.
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
    model.rpn.anchor_generator.cell_anchors = [cell_anchors(size) for size in SIZES]  # theirs are rounded
    model.load_state_dict(torchvision_state(detector.state_dict()))
    return model.eval()

"""Conversion of state dicts to and from Detectron2's names, and the configuration of a Detectron2 state dict."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slotcon_hub.convert import detectron2_name as backbone_name
from training.transfer.mask_rcnn.config import MaskRCNNConfig

__all__ = ["config_of", "detectron2_name", "from_detectron2", "to_detectron2"]

_HEADS: list[tuple[str, Any]] = [  # our pattern to Detectron2's name
    (r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.([01])", lambda m: _pyramid(*m.groups())),
    (r"rpn\.head\.conv\.0\.0", "proposal_generator.rpn_head.conv"),
    (r"rpn\.head\.cls_logits", "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn\.head\.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"),
    (r"roi_heads\.box_head\.(\d)\.([01])", lambda m: _conv("roi_heads.box_head.conv", *m.groups())),
    (r"roi_heads\.mask_head\.(\d)\.([01])", lambda m: _conv("roi_heads.mask_head.mask_fcn", *m.groups())),
    (r"roi_heads\.mask_predictor\.conv5_mask", "roi_heads.mask_head.deconv"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits", "roi_heads.mask_head.predictor"),
]
_BLOCKS: dict[tuple[int, ...], tuple[str, str]] = {
    (2, 2, 2, 2): ("resnet18", ""),
    (3, 4, 6, 3): ("resnet34", "resnet50"),
    (3, 4, 23, 3): ("", "resnet101"),
    (3, 8, 36, 3): ("", "resnet152"),
}  # basic blocks and bottlenecks


def _conv(prefix: str, index: str, part: str) -> str:
    return f"{prefix}{int(index) + 1}" + (".norm" if part == "1" else "")


def _pyramid(kind: str, index: str, part: str) -> str:
    return _conv({"inner": "backbone.fpn_lateral", "layer": "backbone.fpn_output"}[kind], str(int(index) + 1), part)


def detectron2_name(name: str, box_convs: int = 4) -> str:
    """Return Detectron2's name of a tensor.

    Args:
        name: of a parameter or buffer of :class:`MaskRCNN` on a plain ResNet.
        box_convs: of its configuration: the index of the first fully connected layer.
    """
    if name.startswith("backbone.body."):
        return "backbone.bottom_up." + backbone_name(name.removeprefix("backbone.body."))
    for pattern, theirs in _HEADS:
        found, count = re.subn(f"^{pattern}(?=\\.[a-z])", theirs, name)
        if count:
            return found
    if layer := re.fullmatch(r"roi_heads\.box_head\.(\d+)\.(weight|bias)", name):
        return f"roi_heads.box_head.fc{(int(layer[1]) - box_convs - 1) // 2 + 1}.{layer[2]}"
    return name  # box predictor: same names


def to_detectron2(state: Mapping[str, Tensor], box_convs: int = 4) -> dict[str, Any]:
    """Convert the state dict of a detector on a plain ResNet for Detectron2's ``DetectionCheckpointer``.

    Its configuration must have RGB images in ``INPUT.FORMAT``, and the ``mean`` and ``std`` of the detector's in
    ``PIXEL_MEAN`` and ``PIXEL_STD``: a state dict does not hold them.

    Returns:
        ``{"model": {name: array}, "__author__": ...}``, to be pickled.
    """
    arrays = {detectron2_name(k, box_convs): v.detach().cpu().numpy() for k, v in state.items()}
    return {"model": arrays, "__author__": "slotcon_hub"}


def from_detectron2(state: Mapping[str, Any], expected: Sequence[str], box_convs: int = 4) -> dict[str, Tensor]:
    """Convert a checkpoint of Detectron2's Mask R-CNN to the state dict of a :class:`MaskRCNN`.

    Args:
        state: maps names to tensors or arrays, optionally under ``model``; anchors and pixel statistics are
            ignored, ``num_batches_tracked``, absent in frozen norms, becomes 0.
        expected: tensor names of the target :class:`MaskRCNN`.
        box_convs: of its configuration.

    Raises:
        ValueError: a tensor is missing or unexpected.
    """
    theirs = dict(state.get("model", state))
    ours: dict[str, Tensor] = {}
    absent = []
    for name in expected:
        value = theirs.pop(detectron2_name(name, box_convs), None)
        if value is None and name.endswith("num_batches_tracked"):
            value = torch.zeros((), dtype=torch.int64)
        if value is None:
            absent.append(detectron2_name(name, box_convs))
        else:
            ours[name] = torch.as_tensor(value)
    left = [n for n in theirs if not re.search(r"anchor_generator|pixel_(mean|std)|stem\.fc\.", n)]
    if absent or left:
        what = f"lacks {absent[0]!r}" if absent else f"holds {left[0]!r}, which this detector has no place for"
        raise ValueError(f"the checkpoint {what}: make the detector by config_of(its shapes)")
    return ours


def config_of(shapes: Mapping[str, Sequence[int]], **others: Any) -> MaskRCNNConfig:
    """Derive the configuration of a Detectron2 Mask R-CNN R-FPN from tensor shapes.

    Args:
        shapes: by Detectron2's names.
        **others: settings not visible in shapes, such as ``stride_in_1x1``.

    Raises:
        ValueError: not a Mask R-CNN on a ResNet with a pyramid.
    """
    counts = [
        len({k.split(".")[3] for k in shapes if k.startswith(f"backbone.bottom_up.res{n}.")}) for n in range(2, 6)
    ]
    bottleneck = any(".conv3." in name for name in shapes)
    backbone = _BLOCKS.get(tuple(counts), ("", ""))[bottleneck]
    score = shapes.get("roi_heads.box_predictor.cls_score.weight")
    if not backbone or score is None or "roi_heads.mask_head.predictor.weight" not in shapes:
        raise ValueError("these are not the tensors of a Mask R-CNN of Detectron2 on a ResNet with a pyramid")
    return MaskRCNNConfig.numbered(
        score[0] - 1,
        backbone=backbone,
        channels=shapes["backbone.fpn_lateral2.weight"][0],
        norms="backbone.fpn_lateral2.norm.weight" in shapes,
        box_convs=sum(bool(re.fullmatch(r"roi_heads\.box_head\.conv\d+\.weight", n)) for n in shapes),
        box_layers=sum(bool(re.fullmatch(r"roi_heads\.box_head\.fc\d+\.weight", n)) for n in shapes),
        **others,
    )

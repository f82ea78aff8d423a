"""timm models: SlotCon's ResNets, each as a backbone and with projector and prototypes on top.

Weights are rows of ``default_cfgs``, made from those of ``slotcon_hub/weights/table.py``.
"""

import functools
from collections.abc import Callable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from slotcon_hub.models.loading import create, stored_cfg
from slotcon_hub.models.prototype_model import SlotConPrototypes
from slotcon_hub.weights import store, table
from slotcon_hub.weights.architectures import plain_timm
from slotcon_hub.weights.resolve import checkpoint_filter_fn, locate

__all__ = ["SlotConPrototypes"]


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 0,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        "paper_name": "Self-Supervised Visual Representation Learning with Semantic Grouping",
        "paper_ids": "arXiv:2205.15288",
        **kwargs,
    }


def _proto_cfg(**kwargs: Any) -> dict[str, Any]:
    first_conv = f"backbone.{kwargs.pop('first_conv', 'conv1')}"
    return _cfg(**{"num_classes": 256, "classifier": "prototypes", **kwargs, "first_conv": first_conv})


def _row_cfg(row: table.Weights) -> dict[str, Any]:
    source = {
        "hf_hub_id": table.repository(row.name),
        "hf_hub_filename": "model.safetensors",  # timm would take a pickle too
        "license": row.licence,
        "origin_url": row.origin,
        "paper_ids": row.paper,
        "description": f"Pre-trained without labels on {row.data} for {row.epochs} epochs.",
        **(_NANO_INPUT if row.architecture.startswith("slotcon_nano") else {}),
    }
    return _proto_cfg(**source, num_classes=row.prototypes) if row.has_prototypes else _cfg(**source)


_NANO_INPUT = {"input_size": (3, 128, 128), "pool_size": (8, 8), "first_conv": "conv1.0", "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "slotcon_r18": _cfg(),
        "slotcon_r34": _cfg(),
        "slotcon_r101": _cfg(),
        "slotcon_r18_proto": _proto_cfg(),
        "slotcon_r34_proto": _proto_cfg(),
        "slotcon_r101_proto": _proto_cfg(),
        "slotcon_proto": _proto_cfg(),
        **{row.name: _row_cfg(row) for row in table.ROWS},
    }
)


for _name in store.names():  # so that timm lists them; appended, so none becomes a default tag
    _architecture, _tag = _name.split(".", 1)
    _known = default_cfgs.get(_architecture)
    if _known and _tag not in _known.cfgs and (_own := stored_cfg(_name)):
        _known.tags.append(_tag)
        _known.cfgs[_tag] = _own


def _register(entry: Callable[..., Any]) -> Callable[..., Any]:
    """Register an entry point with timm that also takes weights of the local store, and paths in ``pretrained``."""

    @functools.wraps(entry)
    def with_own_weights(pretrained: Any = False, **kwargs: Any) -> Any:
        return create(entry, pretrained, **kwargs)

    return register_model(with_own_weights)


def _build(model: type, name: str, pretrained: bool, **kwargs: Any) -> Any:
    if pretrained:
        cfg, overlay = kwargs.get("pretrained_cfg"), kwargs.pop("pretrained_cfg_overlay", None)
        kwargs["pretrained_cfg_overlay"] = locate(name, cfg, overlay, kwargs.get("cache_dir"))
    return build_model_with_cfg(model, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


def _backbone(name: str, pretrained: bool, **kwargs: Any) -> ResNet:
    return _build(ResNet, name, pretrained, **kwargs)


def _prototypes(name: str, pretrained: bool, **kwargs: Any) -> SlotConPrototypes:
    if row := table.find(name):
        kwargs = {"hidden_dim": row.hidden_dim, "out_dim": row.out_dim, **kwargs}
    return _build(SlotConPrototypes, name, pretrained, feature_cfg={"feature_cls": "getter"}, **kwargs)


@_register
def slotcon_nano(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10-T with half of its channels: 1.2 M parameters, 256 channels, output stride 16."""
    resnet10t = {"block": BasicBlock, "layers": (1, 1, 1, 1), "stem_type": "deep_tiered", "avg_down": True}
    return _backbone("slotcon_nano", pretrained, **{**resnet10t, **plain_timm("slotcon_nano")[1], **kwargs})


@_register
def slotcon_r18(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18: 11 M parameters, 512 channels."""
    return _backbone("slotcon_r18", pretrained, **{"block": BasicBlock, "layers": (2, 2, 2, 2), **kwargs})


@_register
def slotcon_r34(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-34: 21 M parameters, 512 channels."""
    return _backbone("slotcon_r34", pretrained, **{"block": BasicBlock, "layers": (3, 4, 6, 3), **kwargs})


@_register
def slotcon_r50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50, the paper's backbone: 24 M parameters, 2048 channels."""
    return _backbone("slotcon_r50", pretrained, **{"block": Bottleneck, "layers": (3, 4, 6, 3), **kwargs})


@_register
def slotcon_r101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101: 43 M parameters, 2048 channels."""
    return _backbone("slotcon_r101", pretrained, **{"block": Bottleneck, "layers": (3, 4, 23, 3), **kwargs})


@_register
def slotcon_nano_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """Small ResNet with projector and prototypes."""
    return _prototypes("slotcon_nano_proto", pretrained, **{"backbone": "slotcon_nano", **kwargs})


@_register
def slotcon_r18_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """ResNet-18 with projector and prototypes."""
    return _prototypes("slotcon_r18_proto", pretrained, **{"backbone": "slotcon_r18", **kwargs})


@_register
def slotcon_r34_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """ResNet-34 with projector and prototypes."""
    return _prototypes("slotcon_r34_proto", pretrained, **{"backbone": "slotcon_r34", **kwargs})


@_register
def slotcon_r50_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """ResNet-50 with projector and prototypes: the paper's model."""
    return _prototypes("slotcon_r50_proto", pretrained, **{"backbone": "slotcon_r50", **kwargs})


@_register
def slotcon_r101_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """ResNet-101 with projector and prototypes."""
    return _prototypes("slotcon_r101_proto", pretrained, **{"backbone": "slotcon_r101", **kwargs})


@_register
def slotcon_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """Projector and prototypes on any timm backbone: ``timm.create_model("slotcon_proto", backbone=...)``."""
    return _prototypes("slotcon_proto", pretrained, **kwargs)

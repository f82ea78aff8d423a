"""Entry points of ``torch.hub``, from a checkout or from GitHub; only ``dependencies`` must be installed.

torch.hub.load("path/to/slotcon_hub", "slotcon_r50", source="local", pretrained="coco_800ep")
torch.hub.load("<owner>/slotcon_hub", "slotcon_r50", pretrained="coco_800ep", trust_repo=True)
"""

from collections.abc import Callable as _Callable
from typing import Any as _Any

import timm as _timm

import slotcon_hub as _slotcon_hub  # noqa: F401  (registers the models)

dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors"]

_HELP = """\
{what}

Args:
    pretrained: False for random weights; True for those of the default tag; a tag of the published weights or of
        the local store, such as "coco_800ep"; or the path of a checkpoint: the folder of a run or of an export, a
        safetensors file, or an authors' .pth (no code in it is run). The teacher is loaded.
    **kwargs: timm's arguments: features_only, out_indices, output_stride, in_chans, {kwargs}.

Returns:
    A timm model in train mode, from B x 3 x H x W images, normalised by ImageNet's mean and standard deviation,
    to {output}.
    With features_only=True, to a list of the backbone's maps, B x C x H/s x W/s for each stride s.

Raises:
    ValueError: there is no such tag or path, or the weights are not of this network.
    RuntimeError: the weights of the tag cannot be downloaded; they are never replaced by random ones.

Example:
    >>> repository = "<owner>/slotcon_hub"
    >>> model = torch.hub.load(repository, "{name}", {call}, trust_repo=True)
    >>> {line}
"""
_BACKBONE = {
    "kwargs": "num_classes",
    "output": "B x C features; forward_features returns the B x C x H/s x W/s map",
    "call": "pretrained=True",
    "line": "features = model.eval()(images)",
}
_PROTOTYPES = {
    "kwargs": "num_classes, global_pool",
    "output": 'B x K similarities with the prototypes, or the B x K x H/s x W/s map with global_pool=""',
    "call": 'pretrained=True, global_pool=""',
    "line": "groups = model.eval()(images).argmax(1)",
}


def _entry(name: str) -> _Callable[..., _Any]:
    def entry(pretrained: _Any = False, **kwargs: _Any) -> _Any:
        return _timm.create_model(name, pretrained=pretrained, **kwargs)

    what = _timm.models.model_entrypoint(name).__doc__
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = _HELP.format(what=what, name=name, **(_PROTOTYPES if name.endswith("_proto") else _BACKBONE))
    return entry


slotcon_nano = _entry("slotcon_nano")
slotcon_nano_proto = _entry("slotcon_nano_proto")
slotcon_r18 = _entry("slotcon_r18")
slotcon_r18_proto = _entry("slotcon_r18_proto")
slotcon_r34 = _entry("slotcon_r34")
slotcon_r34_proto = _entry("slotcon_r34_proto")
slotcon_r50 = _entry("slotcon_r50")
slotcon_r50_proto = _entry("slotcon_r50_proto")
slotcon_r101 = _entry("slotcon_r101")
slotcon_r101_proto = _entry("slotcon_r101_proto")

"""Entry points of ``torch.hub``: ``torch.hub.load("<this repository>", "slotcon_r50")``.

Each takes ``pretrained`` and timm's arguments for its model, such as ``features_only`` or ``num_classes``.
"""

from collections.abc import Callable as _Callable
from typing import Any as _Any

import timm as _timm

import slotcon_hub as _slotcon_hub  # noqa: F401  (registers the models)

dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors"]


def _entry(name: str) -> _Callable[..., _Any]:
    def entry(pretrained: bool = False, **kwargs: _Any) -> _Any:
        return _timm.create_model(name, pretrained=pretrained, **kwargs)

    entry.__name__ = name
    entry.__doc__ = _timm.models.model_entrypoint(name).__doc__
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

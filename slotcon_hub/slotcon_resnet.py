"""timm models: SlotCon's ResNets, each as a backbone and with projector and prototypes on top.

Weights are rows of ``default_cfgs``. Dimensions: B images, C channels, K prototypes, D embedding channels.
"""

import re
from collections.abc import Sequence
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from slotcon_hub.layers import ProjectionHead, PrototypeNetwork, Prototypes, map_channels

__all__ = ["SlotConPrototypes", "plain_timm"]

_NANO = {"channels": (32, 64, 128, 256), "stem_width": 16, "output_stride": 16}

_PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "slotcon_nano": ("resnet10t", _NANO),
    "slotcon_r18": ("resnet18", {}),
    "slotcon_r34": ("resnet34", {}),
    "slotcon_r50": ("resnet50", {}),
    "slotcon_r101": ("resnet101", {}),
}


def plain_timm(architecture: str) -> tuple[str, dict[str, Any]]:
    """Name a backbone as timm knows it without this package.

    Args:
        architecture: any timm model; ours are translated.

    Returns:
        timm's own architecture, and the arguments that make it the same network.
    """
    return _PLAIN.get(architecture, (architecture, {}))


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
    head = {"num_classes": 256, "first_conv": "backbone.conv1", "classifier": "prototypes"}
    return _cfg(**{**head, **kwargs})


_NANO_INPUT = {"input_size": (3, 128, 128), "pool_size": (8, 8), "first_conv": "conv1.0", "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "slotcon_nano": _cfg(**_NANO_INPUT),
        "slotcon_r18": _cfg(),
        "slotcon_r34": _cfg(),
        "slotcon_r50": _cfg(),
        "slotcon_r101": _cfg(),
        "slotcon_nano_proto": _proto_cfg(**{**_NANO_INPUT, "first_conv": "backbone.conv1.0"}, num_classes=16),
        "slotcon_r18_proto": _proto_cfg(),
        "slotcon_r34_proto": _proto_cfg(),
        "slotcon_r50_proto": _proto_cfg(),
        "slotcon_r101_proto": _proto_cfg(),
        "slotcon_proto": _proto_cfg(),
    }
)


class SlotConPrototypes(PrototypeNetwork):
    """Backbone, projector and prototypes as a timm model whose classes are the prototypes.

    Its features are the backbone's B x C x H x W map, its pre-logits the projections, and its logits the cosine
    similarities with the prototypes, in [-1, 1]: their mean over the cells by default (B x K), the dense map
    with ``global_pool=''`` (B x K x H x W).
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 256,
        in_chans: int = 3,
        global_pool: str = "avg",
        hidden_dim: int = 4096,
        out_dim: int = 256,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        """Build the network with random weights.

        Args:
            backbone: any timm model that returns a map once its head is removed.
            num_classes: K; 0 leaves the prototypes out.
            in_chans: channels of a picture.
            global_pool: "avg", "max", "avgmax", or "" for the dense map.
            hidden_dim: hidden channels of the projector.
            out_dim: D.
            device: of the parameters.
            dtype: of the parameters.
            **kwargs: the backbone's own arguments, such as ``output_stride``.
        """
        dd = {"device": device, "dtype": dtype}
        net: Any = timm.create_model(backbone, num_classes=0, global_pool="", in_chans=in_chans, **dd, **kwargs)
        channels = map_channels(net)
        projector = ProjectionHead(channels, hidden_dim, out_dim, **dd)
        super().__init__(net, projector, Prototypes(num_classes, out_dim, **dd))
        self.in_chans = in_chans
        self.num_features = channels
        self.head_hidden_size = out_dim
        self.feature_info = [{**info, "module": f"backbone.{info['module']}"} for info in net.feature_info]
        self._set_head(num_classes, global_pool)

    def _set_head(self, num_classes: int, global_pool: str) -> None:
        if global_pool not in ("", "avg", "max", "avgmax"):
            raise ValueError(f"global_pool={global_pool!r} cannot pool similarities: use avg, max, avgmax or ''")
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        if num_classes == 0:
            self.prototypes = nn.Identity()  # type: ignore[assignment]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Name the layers for layer decay: the backbone's own groups, then projector and prototypes."""

        def inside(pattern: str) -> str:
            unanchored = re.sub(r"(^|[|(])\^", r"\1", pattern)
            return rf"^backbone\.(?:{unanchored})"

        def prefixed(patterns: str | Sequence[tuple[str, Any]]) -> Any:
            if isinstance(patterns, str):
                return inside(patterns)
            return [(inside(pattern), order) for pattern, order in patterns]

        groups = self.backbone.group_matcher(coarse=coarse)  # type: ignore[operator]
        return {name: prefixed(p) for name, p in groups.items()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in the backbone."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def get_classifier(self) -> nn.Module:
        """The prototypes."""
        return self.prototypes

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the prototypes by ``num_classes`` random ones (none for 0), and the pooling if one is named."""
        weight = next(self.projector.parameters())
        if num_classes > 0:
            self.prototypes = Prototypes(
                num_classes, self.head_hidden_size, device=weight.device, dtype=weight.dtype
            )
        self._set_head(num_classes, self.global_pool.pool_type if global_pool is None else global_pool)
        self.global_pool.train(self.training)
        self.prototypes.train(self.training)

    def forward_intermediates(self, x: Tensor, **kwargs: Any) -> Any:
        """Call the backbone's method of this name, with its arguments (``indices`` and so on)."""
        return self.backbone.forward_intermediates(x, **kwargs)  # type: ignore[operator]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers that the features at ``indices`` do not need, projector and prototypes with them."""
        prune = self.backbone.prune_intermediate_layers
        kept = prune(indices, prune_norm=prune_norm, prune_head=prune_head)  # type: ignore[operator]
        if prune_head:
            self.projector = nn.Identity()  # type: ignore[assignment]
            self._set_head(0, "")
        return kept

    def forward_features(self, x: Tensor) -> Tensor:
        """B x 3 x S x S pictures to the backbone's B x C x H x W map."""
        return self.backbone(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """B x C x H x W features to similarities, or with ``pre_logits`` to projections; pooled as configured."""
        z = self.projector(x)
        return self.global_pool(z if pre_logits else self.prototypes(z))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """B x 3 x S x S pictures to B x K similarities, or B x K x H x W with ``global_pool=''``."""
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Refuse weights that would leave a part of the model random.

    timm loads without strictness when the number of classes differs from the checkpoint's; only the classifier
    may then be absent.

    Raises:
        ValueError: a key is absent or unknown.
    """
    classifier = f"{model.pretrained_cfg['classifier']}."
    needed = {k for k in model.state_dict() if not k.startswith(classifier)}
    found = {k for k in state_dict if not k.startswith(classifier)}
    if needed != found:
        differing = sorted(needed ^ found)
        named = ", ".join(differing[:3]) + ", ..." * (len(differing) > 3)
        raise ValueError(
            f"these weights are not those of {model.pretrained_cfg['architecture']}: {len(needed - found)} keys "
            f"are absent and {len(found - needed)} unknown ({named})"
        )
    return state_dict


def _backbone(name: str, pretrained: bool, **kwargs: Any) -> ResNet:
    return build_model_with_cfg(ResNet, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


def _prototypes(name: str, pretrained: bool, **kwargs: Any) -> SlotConPrototypes:
    return build_model_with_cfg(
        SlotConPrototypes,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"feature_cls": "getter"},
        **kwargs,
    )


@register_model
def slotcon_nano(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Small ResNet-10-T of the demo: 1.2 M parameters, 256 channels, output stride 16."""
    resnet10t = {"block": BasicBlock, "layers": (1, 1, 1, 1), "stem_type": "deep_tiered", "avg_down": True}
    return _backbone("slotcon_nano", pretrained, **{**resnet10t, **_NANO, **kwargs})


@register_model
def slotcon_r18(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18: 11 M parameters, 512 channels."""
    return _backbone("slotcon_r18", pretrained, **{"block": BasicBlock, "layers": (2, 2, 2, 2), **kwargs})


@register_model
def slotcon_r34(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-34: 21 M parameters, 512 channels."""
    return _backbone("slotcon_r34", pretrained, **{"block": BasicBlock, "layers": (3, 4, 6, 3), **kwargs})


@register_model
def slotcon_r50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50, the paper's backbone: 24 M parameters, 2048 channels."""
    return _backbone("slotcon_r50", pretrained, **{"block": Bottleneck, "layers": (3, 4, 6, 3), **kwargs})


@register_model
def slotcon_r101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101: 43 M parameters, 2048 channels."""
    return _backbone("slotcon_r101", pretrained, **{"block": Bottleneck, "layers": (3, 4, 23, 3), **kwargs})


@register_model
def slotcon_nano_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """The demo's small ResNet with projector and prototypes."""
    args = {"backbone": "slotcon_nano", "hidden_dim": 512, "out_dim": 128}
    return _prototypes("slotcon_nano_proto", pretrained, **{**args, **kwargs})


@register_model
def slotcon_r18_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """ResNet-18 with projector and prototypes."""
    return _prototypes("slotcon_r18_proto", pretrained, **{"backbone": "slotcon_r18", **kwargs})


@register_model
def slotcon_r34_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """ResNet-34 with projector and prototypes."""
    return _prototypes("slotcon_r34_proto", pretrained, **{"backbone": "slotcon_r34", **kwargs})


@register_model
def slotcon_r50_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """ResNet-50 with projector and prototypes: the paper's model."""
    return _prototypes("slotcon_r50_proto", pretrained, **{"backbone": "slotcon_r50", **kwargs})


@register_model
def slotcon_r101_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """ResNet-101 with projector and prototypes."""
    return _prototypes("slotcon_r101_proto", pretrained, **{"backbone": "slotcon_r101", **kwargs})


@register_model
def slotcon_proto(pretrained: bool = False, **kwargs: Any) -> SlotConPrototypes:
    """Projector and prototypes on any timm backbone: ``timm.create_model("slotcon_proto", backbone=...)``."""
    return _prototypes("slotcon_proto", pretrained, **kwargs)

"""The prototype model: backbone, projector and prototypes with timm's model interface.

Dimensions: B images, C channels, K prototypes, D embedding channels.
"""

import re
from collections.abc import Sequence
from typing import Any

import timm
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from slotcon_hub.models.layers import PrototypeNetwork, Prototypes

__all__ = ["SlotConPrototypes"]


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
            backbone: any timm model with a feature map; vision transformers have one before their pooling.
            num_classes: K; 0 leaves the prototypes out.
            in_chans: channels of an image.
            global_pool: "avg", "max", "avgmax", or "" for the dense map.
            hidden_dim: hidden channels of the projector.
            out_dim: D.
            device: of the parameters.
            dtype: of the parameters.
            **kwargs: the backbone's own arguments, such as ``output_stride``.
        """
        dd = {"device": device, "dtype": dtype}
        net: Any = timm.create_model(backbone, num_classes=0, global_pool="", in_chans=in_chans, **dd, **kwargs)
        super().__init__(net, num_classes, hidden_dim, out_dim, **dd)
        self.in_chans = in_chans
        self.num_features = self.channels
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
        """Layer groups for layer-wise learning-rate decay: the backbone's own, then projector and prototypes."""

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
        """Turn on activation checkpointing in the backbone."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def get_classifier(self) -> nn.Module:
        """The prototypes."""
        return self.prototypes

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the prototypes by ``num_classes`` random ones (none for 0), and the pooling if given."""
        weight = next(self.projector.parameters())
        if num_classes > 0:
            self.prototypes = Prototypes(
                num_classes, self.head_hidden_size, device=weight.device, dtype=weight.dtype
            )
        self._set_head(num_classes, self.global_pool.pool_type if global_pool is None else global_pool)
        self.global_pool.train(self.training)
        self.prototypes.train(self.training)

    def forward_intermediates(self, x: Tensor, **kwargs: Any) -> Any:
        """The backbone's ``forward_intermediates``, with its arguments."""
        return self.backbone.forward_intermediates(x, **kwargs)  # type: ignore[operator]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop projector, prototypes and the layers that the features at ``indices`` do not need."""
        prune = self.backbone.prune_intermediate_layers
        kept = prune(indices, prune_norm=prune_norm, prune_head=prune_head)  # type: ignore[operator]
        if prune_head:
            self.projector = nn.Identity()  # type: ignore[assignment]
            self._set_head(0, "")
        return kept

    def forward_features(self, x: Tensor) -> Tensor:
        """B x 3 x S x S images to the backbone's B x C x H x W map."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """B x C x H x W features to similarities, or with ``pre_logits`` to projections; pooled as configured."""
        z = self.projector(x)
        return self.global_pool(z if pre_logits else self.prototypes(z))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """B x 3 x S x S images to B x K similarities, or B x K x H x W with ``global_pool=''``."""
        return self.forward_head(self.forward_features(x))

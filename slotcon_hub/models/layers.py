"""The modules of SlotCon: projector, prototypes, slot predictor, and the network of student and teacher.

Dimensions: B images, C backbone channels, K prototypes, D embedding channels, H x W cells, Q slots.
Sections are those of the SlotCon paper (arXiv 2205.15288).
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from slotcon_hub.distributed import SYNCHRONIZED
from slotcon_hub.functional import cosine_scores
from slotcon_hub.models.backbone import eval_mode, intermediate_map, probe_feature_map

__all__ = [
    "MLP",
    "Conv1x1",
    "Dense",
    "ProjectionHead",
    "PrototypeNetwork",
    "Prototypes",
    "SlotPredictor",
    "full_precision",
]


class Conv1x1(nn.Conv2d):
    """A 1 x 1 convolution; in training a product of matrices, which takes half the time in bf16 on a CPU."""

    def __init__(self, in_channels: int, out_channels: int, **dd: Any) -> None:
        """Make it with a bias.

        Args:
            in_channels: of its input.
            out_channels: of its output.
            **dd: ``device`` and ``dtype`` of the parameters.
        """
        super().__init__(in_channels, out_channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """B x C x H x W to B x O x H x W, channels last in training."""
        if not self.training:  # so that exports hold convolutions
            return self._conv_forward(x, self.weight, self.bias)
        return nn.functional.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class ProjectionHead(nn.Module):
    """The projector g: 1 x 1 convolutions C -> hidden -> hidden -> D with BatchNorm and GELU between them."""

    def __init__(self, in_dim: int, hidden_dim: int = 4096, out_dim: int = 256, **dd: Any) -> None:
        """Draw the weights from a truncated normal of std 0.02; biases are zero.

        Args:
            in_dim: channels of the backbone's map.
            hidden_dim: channels of both hidden layers.
            out_dim: D.
            **dd: ``device`` and ``dtype`` of the parameters.
        """
        super().__init__()
        self.mlp = nn.Sequential(
            Conv1x1(in_dim, hidden_dim, **dd),
            nn.BatchNorm2d(hidden_dim, **dd),
            nn.GELU(),
            Conv1x1(hidden_dim, hidden_dim, **dd),
            nn.BatchNorm2d(hidden_dim, **dd),
            nn.GELU(),
            Conv1x1(hidden_dim, out_dim, **dd),
        )
        self.mlp.apply(_init_weights)

    def forward(self, features: Tensor) -> Tensor:
        """B x C x H x W features to B x D x H x W projections."""
        return self.mlp(features)


class MLP(nn.Module):
    """Linear layers in -> hidden -> hidden -> out with BatchNorm and GELU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        """Draw the weights from a truncated normal of std 0.02; biases are zero."""
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, out_dim),
        )
        self.mlp.apply(_init_weights)

    def forward(self, rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Transform a batch of vectors.

        A batch of fewer than two rows has no variance: it is normalised by the running statistics, which it does
        not update.

        Args:
            rows: Q x in; Q may be 0.
            counts: rows of every process, needed if the norms are synchronised.

        Returns:
            Q x out.
        """
        if counts is None or not any(isinstance(norm, SYNCHRONIZED) for norm in self.mlp):
            counts = [len(rows)]
        if sum(counts) < 2:
            # Copies, since the next batch may update the statistics before the backward of this one.
            statistics = {name: buffer.clone() for name, buffer in self.mlp.named_buffers()}
            with eval_mode(self.mlp):
                return functional_call(self.mlp, statistics, rows)
        return self.mlp(rows)


class SlotPredictor(MLP):
    """The predictor q: D -> hidden -> hidden -> D, from the student's slots to the teacher's."""

    def __init__(self, dim: int = 256, hidden_dim: int = 4096) -> None:
        super().__init__(dim, hidden_dim, dim)


class Prototypes(nn.Module):
    """K semantic prototypes, drawn from N(0, 1): a cosine classifier of cells."""

    def __init__(self, num_prototypes: int, dim: int = 256, **dd: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_prototypes, dim, **dd))

    def forward(self, z: Tensor) -> Tensor:
        """B x D x H x W projections to B x K x H x W raw scores in [-1, 1]."""
        return cosine_scores(z, self.weight)


class Dense(NamedTuple):
    """Outputs of the network for every cell of a view."""

    z: Tensor
    """B x D x H x W projections, at least float32."""
    scores: Tensor
    """B x K x H x W raw scores in [-1, 1], at least float32."""
    features: Tensor
    """B x C x H x W features of the backbone."""


class PrototypeNetwork(nn.Module):
    """Backbone f, projector g and prototypes S: the network of student and teacher; the teacher's is released."""

    returns_map: Final[bool]  # final, so that TorchScript compiles one branch only

    def __init__(
        self, backbone: nn.Module, num_prototypes: int, hidden_dim: int = 4096, out_dim: int = 256, **dd: Any
    ) -> None:
        """Add projector and prototypes to a backbone.

        Args:
            backbone: maps B x 3 x S x S images to B x C x H x W; or a timm model with such a map before its
                pooling.
            num_prototypes: K.
            hidden_dim: hidden channels of the projector.
            out_dim: D.
            **dd: ``device`` and ``dtype`` of projector and prototypes.

        Raises:
            ValueError: the backbone has no feature map.
        """
        super().__init__()
        self.channels, self.returns_map = probe_feature_map(backbone)
        self.backbone = backbone
        self.projector = ProjectionHead(self.channels, hidden_dim, out_dim, **dd)
        self.prototypes = Prototypes(num_prototypes, out_dim, **dd)

    def features(self, view: Tensor) -> Tensor:
        """B x 3 x S x S images to the backbone's B x C x H x W map."""
        if self.returns_map:
            return self.backbone(view)
        return intermediate_map(self.backbone, view)

    def forward(self, view: Tensor) -> Dense:
        """B x 3 x S x S images to projections, raw scores and features."""
        features = self.features(view)
        z = self.projector(features)
        with torch.autocast(z.device.type, enabled=False):
            z = full_precision(z)
            return Dense(z, self.prototypes(z), features)


def full_precision(x: Tensor) -> Tensor:
    """Cast to at least float32, against autocast."""
    return x if x.dtype == torch.float64 else x.float()


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]

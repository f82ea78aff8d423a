"""The modules of SlotCon: projector, prototypes, slot predictor, and the network that joins the first two.

Dimensions: B images, C backbone channels, K prototypes, D embedding channels, H x W cells, Q slots.
Sections are those of the SlotCon paper (arXiv 2205.15288).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slotcon_hub.distributed import SYNCHRONIZED
from slotcon_hub.functional import cosine_scores

__all__ = [
    "ProjectionHead",
    "PrototypeNetwork",
    "Prototypes",
    "SlotPredictor",
    "evaluating",
    "map_channels",
]


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
            nn.Conv2d(in_dim, hidden_dim, 1, **dd),
            nn.BatchNorm2d(hidden_dim, **dd),
            nn.GELU(),
            nn.Conv2d(hidden_dim, hidden_dim, 1, **dd),
            nn.BatchNorm2d(hidden_dim, **dd),
            nn.GELU(),
            nn.Conv2d(hidden_dim, out_dim, 1, **dd),
        )
        self.mlp.apply(_init_weights)

    def forward(self, features: Tensor) -> Tensor:
        """B x C x H x W features to B x D x H x W projections."""
        return self.mlp(features)


class SlotPredictor(nn.Module):
    """The predictor q: linear layers D -> hidden -> hidden -> D with BatchNorm and GELU between them."""

    def __init__(self, dim: int = 256, hidden_dim: int = 4096) -> None:
        """Draw the weights from a truncated normal of std 0.02; biases are zero."""
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, dim),
        )
        self.mlp.apply(_init_weights)

    def forward(self, slots: Tensor, total: int | None = None) -> Tensor:
        """Predict the teacher's slots from the student's.

        A batch of fewer than two slots has no variance: it is normalised by the running statistics, which it
        does not move.

        Args:
            slots: Q x D; Q may be 0.
            total: slots of all processes together, which counts where the norms are synchronised.

        Returns:
            Q x D.
        """
        if total is None or not isinstance(self.mlp[1], SYNCHRONIZED):
            total = len(slots)
        if total < 2:
            with evaluating(self.mlp):
                return self.mlp(slots)
        return self.mlp(slots)


class Prototypes(nn.Module):
    """K semantic prototypes, drawn from N(0, 1): a cosine classifier of cells."""

    def __init__(self, num_prototypes: int, dim: int = 256, **dd: Any) -> None:
        """Make ``num_prototypes`` prototypes of ``dim`` channels."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_prototypes, dim, **dd))

    def forward(self, z: Tensor) -> Tensor:
        """B x D x H x W projections to B x K x H x W raw scores in [-1, 1]."""
        return cosine_scores(z, self.weight)


class PrototypeNetwork(nn.Module):
    """Backbone f, projector g and prototypes S: what student and teacher are, and what is released."""

    def __init__(self, backbone: nn.Module, projector: ProjectionHead, prototypes: Prototypes) -> None:
        """Join three modules; ``backbone`` maps B x 3 x S x S pictures to B x C x H x W."""
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.prototypes = prototypes

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """B x 3 x S x S pictures to projections B x D x H x W and raw scores B x K x H x W.

        Both are at least float32, whatever autocast made of the layers.
        """
        z = self.projector(self.backbone(view))
        with torch.autocast(z.device.type, enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            return z, self.prototypes(z)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and each of its parts back into its own mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@torch.no_grad()
def map_channels(backbone: nn.Module) -> int:
    """Ask a backbone, with one small picture, for the channels C of the B x C x H x W map that it returns.

    Raises:
        ValueError: it returns something else.
    """
    config = getattr(backbone, "pretrained_cfg", {})
    size = config["input_size"][1:] if config.get("fixed_input_size") else (64, 64)
    weight = next(backbone.parameters(), torch.zeros(()))
    with evaluating(backbone):
        features = backbone(weight.new_zeros(1, getattr(backbone, "in_chans", 3), *size))
    layout = getattr(backbone, "output_fmt", "NCHW")
    if not isinstance(features, Tensor) or features.dim() != 4 or layout != "NCHW":
        found = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"the backbone returns {found}: SlotCon needs one that returns a B x C x H x W map")
    return features.shape[1]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]

"""Activation checkpointing: activations are recomputed in the backward, with the same results in less memory."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from training.engine.batchnorm import restore_buffers

__all__ = ["recompute_first_stage", "run_recomputing_norms"]


def recompute_first_stage(backbone: Any, strides: Sequence[int] = (4,)) -> None:
    """Checkpoint the stages of some strides in training: only their inputs are stored, the rest is recomputed.

    In a ResNet-50 the stage of stride 4 has a third of the activations but a tenth of the FLOPs. A backbone without
    such stages, such as a vision transformer, is unchanged.

    Args:
        backbone: of ``timm.create_model(..., features_only=True)``.
        strides: of the output of each stage.
    """
    modules = dict(backbone.named_modules())
    for stride in strides:
        names = [info["module"] for info in backbone.feature_info.info if info["reduction"] == stride]
        for name in names[-1:]:
            if stage := modules.get(name) or modules.get(name.replace(".", "_")):
                _recompute(stage)


def run_recomputing_norms(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Run layers in sequence, and recompute norms and activations in the backward.

    Only the inputs of norms are stored, not those of convolutions, which are as large. Convolutions are not
    recomputed: torch stops recomputing as soon as it has all inputs of the backward.

    Args:
        layers: convolutions, norms and activations, in any nesting of ``Sequential``.
        x: input of the first layer.
    """
    flat = (part for layer in layers for part in layer.modules() if not list(part.children()))
    segment: list[nn.Module] = []
    for part in flat:
        segment.append(part)
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            x, segment = _run_segment(nn.Sequential(*segment), x), []
    return nn.Sequential(*segment)(x)


def _run_segment(segment: nn.Sequential, x: Tensor) -> Tensor:
    """Run some layers, checkpointed if they have a norm; what begins with an in-place ReLU cannot be recomputed."""
    has_norm = any(isinstance(part, _BatchNorm) and part.training for part in segment)
    return _checkpointed(segment, segment, x) if has_norm and torch.is_grad_enabled() else segment(x)


def _checkpointed(forward: Callable[[Tensor], Any], module: nn.Module, x: Tensor) -> Any:
    return checkpoint(
        forward,
        x,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), restore_buffers(module)),
    )


def _recompute(stage: nn.Module) -> None:
    forward = stage.forward

    def recomputed(x: Tensor) -> Any:
        if not (stage.training and torch.is_grad_enabled()):
            return forward(x)
        return _checkpointed(forward, stage, x)

    stage.forward = recomputed

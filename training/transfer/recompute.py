"""Activation checkpointing: activations are recomputed in the backward, with the same results in less memory."""

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.engine.batchnorm import restore_buffers

__all__ = ["recompute_first_stage", "run_recomputing_norms"]

STRIDE = 4  # of the first stage's feature maps


def recompute_first_stage(backbone: Any) -> None:
    """Checkpoint the stage of stride 4 in training: only its input is stored, other activations are recomputed.

    In a ResNet-50 this stage has a third of the activations but a tenth of the FLOPs. A backbone without such a
    stage, such as a vision transformer, is unchanged.

    Args:
        backbone: of ``timm.create_model(..., features_only=True)``.
    """
    names = [info["module"] for info in backbone.feature_info.info if info["reduction"] == STRIDE]
    modules = dict(backbone.named_modules())
    for name in names[-1:]:
        if stage := modules.get(name) or modules.get(name.replace(".", "_")):
            _recompute(stage)


def run_recomputing_norms(layers: Iterable[nn.Module], source: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run layers in sequence, and recompute norms and activations in the backward.

    Only the inputs of norms are stored, not those of convolutions, which are as large. Convolutions are not
    recomputed: torch stops recomputing as soon as it has all inputs of the backward.

    Args:
        layers: convolutions, norms and activations, in any nesting of ``Sequential``.
        source: computes the input of the first layer; also recomputed.
        inputs: of ``source``.
    """
    flat = (part for layer in layers for part in layer.modules() if not list(part.children()))
    segment: list[Any] = [source]
    for part in flat:
        segment.append(part)
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            inputs, segment = (_run_segment(segment, inputs),), []
    return _run(segment, *inputs)


def _run_segment(segment: list[Any], inputs: tuple[Tensor, ...]) -> Tensor:
    """Run and checkpoint some layers; a segment that begins with an in-place ReLU cannot be recomputed."""
    forward, again = partial(_run, segment), not isinstance(segment[0], nn.ReLU)
    if again and segment[-1].training and torch.is_grad_enabled():
        return _checkpointed(forward, nn.ModuleList(s for s in segment if isinstance(s, nn.Module)), *inputs)
    return forward(*inputs)


def _run(layers: list[Any], *inputs: Tensor) -> Any:
    for layer in layers:
        inputs = (layer(*inputs),)
    return inputs[0]


def _checkpointed(forward: Callable[..., Any], module: nn.Module, *inputs: Tensor) -> Any:
    return checkpoint(
        forward,
        *inputs,
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

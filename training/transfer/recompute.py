"""Activations that are computed again in the backward, in place of being kept: the same numbers in less memory."""

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.engine.batchnorm import restore_buffers

__all__ = ["recompute_first_stage", "run_recomputing_norms"]

STRIDE = 4  # of the maps of a network's first stage


def recompute_first_stage(backbone: Any) -> None:
    """Let the stage of stride 4 keep nothing but its input while it trains: the same numbers in less memory.

    In a ResNet-50 it holds a third of all activations, and a tenth of the arithmetic. A backbone that has no such
    stage, such as a vision transformer, is left as it is.

    Args:
        backbone: of ``timm.create_model(..., features_only=True)``.
    """
    names = [info["module"] for info in backbone.feature_info.info if info["reduction"] == STRIDE]
    modules = dict(backbone.named_modules())
    for name in names[-1:]:
        if stage := modules.get(name) or modules.get(name.replace(".", "_")):
            _recompute(stage)


def run_recomputing_norms(layers: Iterable[nn.Module], source: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run layers after each other, where norms and what follows them are computed again in the backward.

    Kept are the inputs of the norms alone, not those of the convolutions, which are as large. No convolution is
    computed again: torch ends the recomputing as soon as it has what the backward needs.

    Args:
        layers: such as ``Sequential`` of convolutions, norms and activations, in any nesting.
        source: makes the input of the first, and is computed again too.
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
    """Run a part of the layers; what begins with an activation in place cannot be computed again."""
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

"""Learning rate and optimisers of the paper, section 4.1: LARS, or SGD."""

import math
from typing import Literal

import torch
from timm.optim import Lars
from torch import nn

__all__ = ["OptimizerName", "lr_at", "make_optimizer"]

OptimizerName = Literal["lars", "sgd"]


def lr_at(step: int, *, base_lr: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of an optimisation step: a linear rise from 1 % to all of it, then a cosine to 1e-6.

    Args:
        step: optimisation steps taken, from 0.
        base_lr: the peak, reached at ``warmup_steps``; already scaled by the batch size.
        warmup_steps: W; 0 for none.
        total_steps: T, of the run.
    """
    if step <= warmup_steps and warmup_steps > 0:
        return base_lr / 100 * (99 * step / warmup_steps + 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return 1e-6 + (base_lr - 1e-6) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(
    model: nn.Module, name: OptimizerName, *, weight_decay: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Make the optimiser of a model's trainable parameters; the step sets its learning rate.

    Biases and the parameters of norms (all that have one dimension) get neither weight decay nor, with LARS,
    an adapted rate. A transformer's tokens and positions have more, and count as weights.

    Args:
        model: whose parameters with ``requires_grad`` are optimised.
        name: "lars" (trust coefficient 0.001) or "sgd".
        weight_decay: of all parameters of two dimensions and more.
        momentum: of either.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "lars":
        groups[0]["always_adapt"] = True  # without it, a decay of 0 would end the adaptation too
        return Lars(groups, lr=0.0, momentum=momentum, trust_coeff=0.001)
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum)

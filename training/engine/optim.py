"""Learning rate and optimisers of the paper, section 4.1: LARS, or SGD."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

__all__ = ["Lars", "OptimizerName", "lr_at", "make_optimizer"]

OptimizerName = Literal["lars", "sgd"]


def lr_at(step: int, *, base_lr: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of an optimisation step: linear warm-up from 1 % of the peak, then a cosine to 1e-6.

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


class Lars(torch.optim.Optimizer):
    """LARS by the rule of SlotCon's published code (after You et al., arXiv 1708.03888).

    For a parameter w with gradient g, momentum buffer mu (from 0) and learning rate lr::

        d = g + weight_decay * w
        q = trust_coefficient * |w| / |d|  if |w| > 0 and |d| > 0, else 1
        mu = momentum * mu + q * d
        w = w - lr * mu

    The weight decay is inside the norm. timm's ``Lars`` divides by ``|g| + weight_decay * |w|`` instead, which
    shortens steps where the decay is not small relative to the gradient, as for the prototypes.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        """Groups with ``trust_coefficient=None`` have q = 1."""
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            # On a CPU, single tensors stay in the cache.
            for some in [params] if params and params[0].is_cuda else [[p] for p in params]:
                self._move(some, group)
        return loss

    def _move(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        steps = torch._foreach_add([p.grad for p in params], params, alpha=group["weight_decay"])  # type: ignore
        if group["trust_coefficient"] is not None:
            w, d = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(steps))
            q = torch.where((w > 0) & (d > 0), group["trust_coefficient"] * w / d, 1.0)
            torch._foreach_mul_(steps, list(q.unbind()))
        for p in params:
            if p not in self.state:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, steps)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the momentum buffers and settings of :meth:`state_dict`.

        Raises:
            ValueError: the state is of another optimiser, such as timm's ``Lars``.
        """
        if any("trust_coefficient" not in group for group in state_dict["param_groups"]):
            raise ValueError(
                "this checkpoint has the state of another optimiser than this LARS (before version 0.1.0, timm's, "
                "which takes shorter steps): start a new run from its weights, with --continue-from"
            )
        super().load_state_dict(state_dict)


def make_optimizer(
    model: nn.Module, name: OptimizerName, *, weight_decay: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Create the optimiser of a model's trainable parameters; each step sets its learning rate.

    One-dimensional parameters (biases, norms) get no weight decay and, with LARS, no adapted rate. A transformer's
    tokens and position embeddings have more dimensions, and are treated as weights.

    Args:
        model: its parameters with ``requires_grad`` are optimised.
        name: "lars" (trust coefficient 0.001) or "sgd".
        weight_decay: of parameters with two or more dimensions.
        momentum: of either.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    weights: dict[str, Any] = {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay}
    others: dict[str, Any] = {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}
    if name == "lars":
        return Lars([weights, {**others, "trust_coefficient": None}], momentum=momentum)
    return torch.optim.SGD([weights, others], lr=0.0, momentum=momentum)

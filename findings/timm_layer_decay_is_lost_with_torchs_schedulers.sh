#!/usr/bin/env bash
# timm 1.0.31, torch 2.14.1: layer_decay of timm.optim has no effect at all unless a scheduler of timm runs.
#
# create_optimizer_v2(..., layer_decay=0.5) makes a group for each layer, and one expects smaller learning rates in
# the lower ones. Every group has the full learning rate; the factor is a key of its own, lr_scale, which neither
# torch's optimisers nor torch's schedulers know. timm's schedulers multiply it in at their first step_update. Without
# one, the first layer is trained as fast as the last, which fine-tuning recipes with layer decay are meant to prevent.
#
# Seen: "lr_scale of the first group 0.001953; its steps: torch's scheduler 1, timm's 0.001953 of the last group's"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy
"$folder/env/bin/python" - <<'PY'
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler


def steps(kind: str) -> tuple[float, float]:
    """The factor of the first group, and the step of its weights relative to that of the last group."""
    model = timm.create_model("resnet18", num_classes=10)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0, layer_decay=0.5)
    if kind == "torch":
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    else:
        CosineLRScheduler(optimizer, t_initial=10, t_in_epochs=False).step_update(0)
    ends = optimizer.param_groups[0], optimizer.param_groups[-1]
    weights = [group["params"][0] for group in ends]
    before = [weight.detach().clone() for weight in weights]
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    first, last = ((old - new).mean().item() for old, new in zip(before, weights))
    return ends[0]["lr_scale"], first / last


(scale, with_torch), (_, with_timm) = steps("torch"), steps("timm")
print(
    f"lr_scale of the first group {scale:.4g}; its steps: torch's scheduler {with_torch:.4g}, "
    f"timm's {with_timm:.4g} of the last group's"
)
if abs(with_torch - 1) > 1e-3 or abs(with_timm / scale - 1) > 0.05:
    raise SystemExit("this has changed: only timm's scheduler applied the layer decay before")
PY

#!/usr/bin/env bash
# timm 1.0.31 (torch 2.14.1): optim.Lars is not the LARS of the published self-supervised codes.
#
# The codes of SwAV, PixPro, BYOL ports and SlotCon scale a step by  eta * |w| / |g + wd * w|, the norm of the whole
# direction. timm divides by  |g| + wd * |w|, the sum of both norms. Where the decay opposes the gradient, or is as
# large as it, the step is shorter, up to several times; nothing of it shows in a loss curve but slower training.
# A recipe's learning rate therefore cannot be carried from one to the other.
#
# Here w = (3, 4), g = (-0.3, -0.1), wd = 0.05, eta = 0.001: |g + wd w| = 0.1803, |g| + wd |w| = 0.5662.
# Seen: "step by timm 0.00883 of the direction, by the published rule 0.02774: 3.14 times"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 timm==1.0.31
"$folder/env/bin/python" - <<'PY'
import torch
from timm.optim import Lars

w, g = torch.tensor([3.0, 4.0]), torch.tensor([-0.3, -0.1])
decay, eta = 0.05, 0.001
parameter = torch.nn.Parameter(w.clone())
parameter.grad = g.clone()
Lars([parameter], lr=1.0, momentum=0.0, weight_decay=decay, trust_coeff=eta).step()
direction = g + decay * w
timm = float((w - parameter.detach()).norm() / direction.norm())
published = float(eta * w.norm() / direction.norm())
print(f"step by timm {timm:.5f} of the direction, by the published rule {published:.5f}: {published / timm:.2f} times")
if abs(published / timm - 3.14) > 0.01:
    raise SystemExit("this has changed: 3.14 times was seen before")
PY

#!/usr/bin/env bash
# torch 2.14.1: autocast's cache of weights leaves out those of a frozen network.
#
# Inside one autocast region a weight is cast to bf16 once and kept: so one reads, and so it is for a network that is
# trained. The cache takes leaves that require a gradient alone. A teacher (EMA copy, distillation, momentum encoder)
# has requires_grad=False, and its weights are cast anew in each of its forwards, though they do not change between
# them; two views of a batch cost two casts of all weights. torch.no_grad() around a network whose weights do require
# a gradient keeps the cache.
#
# Seen: "casts of the weight in two forwards: trained 1, frozen 2, trained under no_grad 1"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy
"$folder/env/bin/python" - <<'PY'
import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    """Counts the casts of one tensor."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.count = weight, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() == self.weight.data_ptr():
            self.count += 1
        return func(*args, **(kwargs or {}))


def count(requires_grad: bool, context=contextlib.nullcontext) -> int:
    layer = torch.nn.Linear(64, 64, bias=False).requires_grad_(requires_grad)
    x = torch.randn(8, 64, dtype=torch.bfloat16)
    with context(), Casts(layer.weight) as casts, torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x), layer(x)
    return casts.count


found = count(True), count(False), count(True, torch.no_grad)
print("casts of the weight in two forwards: trained {}, frozen {}, trained under no_grad {}".format(*found))
if found != (1, 2, 1):
    raise SystemExit("this has changed: 1, 2 and 1 were seen before")
PY

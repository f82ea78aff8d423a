#!/usr/bin/env bash
# torch 2.14.1: the differentiable collectives of torch.distributed.nn keep the process group that there was when an
# optimiser was first made.
#
# Their signatures say group=group.WORLD, which reads like "the default group of the call". Python evaluates it once,
# when the module is imported, and that happens unseen: the first optimiser imports torch._dynamo, which imports this
# module. If there is a group by then, it is their default for the rest of the program: destroy_process_group() cannot
# end it (its threads and sockets stay), and in a second group, smaller or larger after an elastic restart, a notebook
# or a test, they go on talking to the members of the first one. The sum is wrong, and nothing says so. With a group
# that is made after the first optimiser, the default is None and the default group is asked in each call.
#
# Seen: "all_reduce of ones in a group of 2: 1.0 by torch.distributed.nn, 2.0 by it with group=, 2.0 by torch.distributed"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy
cat > "$folder/sums.py" <<'PY'
import sys
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing


def work(rank: int, folder: str) -> None:
    """Be alone in a first group, make an optimiser, and add ones in a second group of two."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/alone-{rank}", rank=0, world_size=1)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{folder}/both", rank=rank, world_size=2)
    warnings.simplefilter("ignore")
    sums = [
        dist.nn.functional.all_reduce(torch.ones(1)).item(),
        dist.nn.functional.all_reduce(torch.ones(1), group=dist.group.WORLD).item(),
    ]
    ones = torch.ones(1)
    dist.all_reduce(ones)
    sums.append(ones.item())
    if rank == 0:
        names = "{} by torch.distributed.nn, {} by it with group=, {} by torch.distributed"
        print("all_reduce of ones in a group of 2:", names.format(*sums))
        if sums != [1, 2, 2]:
            sys.exit("this has changed: 1, 2 and 2 were seen before")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
PY
"$folder/env/bin/python" "$folder/sums.py" "$folder"

#!/usr/bin/env bash
# torch 2.14.1: destroy_process_group() does not end the default group of a program whose DDP module is still there.
#
# After it, is_initialized() is False and a new group can be made, so one reads that threads and sockets are gone. But
# DDP's reducer shares the group in C++: gloo's threads go on until the module is released, often at the very end of
# the program. The destructor then runs inside the reducer's, which holds Python's lock (GIL), while the destructor of
# a group that Python releases last gives the lock up first. Programs that end in the order of the documents
# (destroy_process_group() as the last line of main) thus wait for gloo's threads with the lock held: with torch 2.9.0
# on a busy machine some of our runs never ended, since one of these threads had tensors to release and waited for that
# lock. Releasing DDP before destroy_process_group() ends the threads there.
#
# Seen: "gloo's threads: in training 3, after destroy_process_group() 3, after releasing DDP 0"
#       "gloo's threads: in training 3, after releasing DDP 3, after destroy_process_group() 0"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy
"$folder/env/bin/python" - <<'PY'
import gc
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # imported later, it would keep the group too
from torch import nn


def threads() -> int:
    """Number of this process's threads that gloo named."""
    time.sleep(0.5)  # all work of the group is over
    return sum("gloo" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())


def release() -> None:
    global ddp
    ddp = None
    gc.collect()


def count(*ends) -> list[int]:
    """Train a step in a group of one process, and count gloo's threads there and after each end."""
    global ddp
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        network = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        ddp = nn.parallel.DistributedDataParallel(network)
        ddp(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        found = [threads()]
        for end in ends:
            end()
            found.append(threads())
    return found


destroyed, released = count(dist.destroy_process_group, release), count(release, dist.destroy_process_group)
print("gloo's threads: in training {}, after destroy_process_group() {}, after releasing DDP {}".format(*destroyed))
print("gloo's threads: in training {}, after releasing DDP {}, after destroy_process_group() {}".format(*released))
if (destroyed, released) != ([3, 3, 0], [3, 3, 0]):
    raise SystemExit("this has changed: 3, 3, 0 and 3, 3, 0 were seen before")
PY

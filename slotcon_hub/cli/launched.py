"""Commands that torchrun or ``accelerate launch`` started as several processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["join_process_group"]

PATIENCE = timedelta(hours=2)  # time to wait for slower processes


@contextmanager
def join_process_group(device: torch.device) -> Iterator[torch.device]:
    """Create the process group for the block; a single process needs none.

    Args:
        device: option of the command; for "cuda" without an index, each process uses its local rank.

    Yields:
        The device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo", timeout=PATIENCE)  # the exchanged objects are on the host
    try:
        yield device
    finally:
        dist.destroy_process_group()

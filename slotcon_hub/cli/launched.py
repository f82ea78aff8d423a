"""A command that torchrun or ``accelerate launch`` has started several times."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["join_process_group"]

PATIENCE = timedelta(hours=2)  # with processes that are slower


@contextmanager
def join_process_group(device: torch.device) -> Iterator[torch.device]:
    """Be one process group inside; a command that was started alone is none.

    Args:
        device: that the command was told to use; of CUDA's without a number, every process takes its own.

    Yields:
        The device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo", timeout=PATIENCE)  # what is exchanged is on the host
    try:
        yield device
    finally:
        dist.destroy_process_group()

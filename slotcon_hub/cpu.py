"""The CPU that this process may use: its cores, and the memory that tensors are made in."""

import ctypes
import math
import os
from pathlib import Path

import torch

__all__ = ["keep_freed_memory", "usable_cores", "use_cores"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def use_cores(threads: int | None = None) -> None:
    """Let torch compute on so many threads, or on the usable cores, shared with the neighbours of one launch."""
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(threads or max(usable_cores() // neighbours, 1))


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, and no more than its cgroup's quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(math.ceil(min(cores, _quota())), 1)


def _quota() -> float:
    """Cores worth of time that Linux grants this process's cgroup and those above it; infinity without a limit."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return math.inf
    limits = [math.inf]
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / "cpu" if controllers else CGROUPS  # version 1, version 2
        group = root / path.lstrip("/")
        limits += [_limit(place) for place in (group, *group.parents) if place.is_relative_to(root)]
    return min(limits)


def _limit(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf


def keep_freed_memory() -> bool:
    """Let this process keep the memory that its tensors free, in place of giving it back to the system.

    glibc takes every block above 32 MB from the system anew, which hands it over page by page, cleared: on a CPU a
    fifth of the time of a forward of ResNet-50 on 16 images. For commands, which compute and end; a process that
    does other things besides would never shrink.

    Returns:
        Whether the C library can be told so.

    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))

"""The CPU cores that this process may use, and how it keeps memory."""

import ctypes
import math
import os
from pathlib import Path

import torch

__all__ = ["keep_freed_memory", "usable_cores", "use_cores"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def use_cores(threads: int | None = None) -> None:
    """Set torch's threads: by default the usable cores, divided among the processes of this launch."""
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(threads or max(usable_cores() // neighbours, 1))


def usable_cores() -> int:
    """Number of cores in this process's affinity, limited by its cgroup's CPU quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(math.ceil(min(cores, _quota())), 1)


def _quota() -> float:
    """Smallest CPU quota, in cores, of this process's cgroup and its parents; infinity without a limit."""
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
    """Keep freed tensor memory in this process instead of returning it to the system.

    By default glibc maps every block above 32 MB anew, and the kernel clears its pages: a fifth of the time of a
    ResNet-50 forward on 16 images on a CPU. Meant for commands that compute and end, since the process never
    shrinks.

    Returns:
        Whether the C library supports it.

    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))

"""The memory of the CPU that tensors are made in."""

import ctypes

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)


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

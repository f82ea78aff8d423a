"""What libraries' errors say, in a line for people."""

import contextlib
from collections.abc import Iterator

__all__ = ["first_line", "is_lost_worker", "naming_lost_workers"]


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_lost_worker(error: BaseException) -> bool:
    """Whether a worker was killed: torch says so in the midst of whatever the main process does.

    If the worker was handing over a batch, what is read first is the end of its connection.
    """
    if isinstance(error, ConnectionResetError | EOFError):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


@contextlib.contextmanager
def naming_lost_workers(advice: str) -> Iterator[None]:
    """Turn what torch raises when a worker that loads images was killed into a sentence.

    Args:
        advice: how to go on.

    Raises:
        OSError: a worker was killed, most often by the system, which needed its memory.
    """
    try:
        yield
    except (RuntimeError, ConnectionResetError, EOFError) as error:
        if not is_lost_worker(error):
            raise
        reason = f"a process that loads images has ended ({first_line(error).rstrip('. ')})"
        raise OSError(f"{reason}; if memory ran out, use fewer --workers: {advice}") from None

"""Errors in one sentence: what libraries say, and what ends a command."""

import contextlib
from collections.abc import Iterator

__all__ = ["RunError", "first_line", "is_lost_worker", "naming_lost_workers", "one_line_errors"]


class RunError(Exception):
    """Ends a run, in a sentence for the user; raised in a worker, too."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type, if it has none."""
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


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception], interrupted: str) -> Iterator[None]:
    """End the process in one sentence on errors that a user can mend.

    Args:
        kinds: of such errors.
        interrupted: what a Ctrl-C says.

    Raises:
        SystemExit: with the sentence.
    """
    try:
        yield
    except kinds as error:
        text = str(error)
        if isinstance(error, RunError):  # from a worker it brings its traceback, and the message comes last
            text = text.rpartition(f"{type(error).__name__}: ")[2].strip()
        raise SystemExit(f"error: {text}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"error: {interrupted}") from None

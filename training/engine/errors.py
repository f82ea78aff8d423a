"""Errors in one sentence."""

import contextlib
from collections.abc import Iterator

__all__ = ["RunError", "explain_lost_workers", "first_line", "is_lost_worker", "one_line_errors"]


class RunError(Exception):
    """Ends a run with a sentence for the user; also raised in workers."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type if it is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_lost_worker(error: BaseException) -> bool:
    """Whether an error means that a worker was killed; torch raises it anywhere in the main process.

    If the worker was sending a batch, the first error is the end of its connection.
    """
    if isinstance(error, ConnectionResetError | EOFError):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


@contextlib.contextmanager
def explain_lost_workers(advice: str) -> Iterator[None]:
    """Convert torch's error for a killed data-loading worker to one sentence.

    Args:
        advice: how to go on.

    Raises:
        OSError: a worker was killed, usually by the system for its memory.
    """
    try:
        yield
    except (RuntimeError, ConnectionResetError, EOFError) as error:
        if not is_lost_worker(error):
            raise
        reason = f"a worker that loads images was killed ({first_line(error).rstrip('. ')})"
        raise OSError(f"{reason}; if memory ran out, use fewer --workers: {advice}") from None


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception], interrupted: str) -> Iterator[None]:
    """Exit with one sentence on errors that a user can fix.

    Args:
        kinds: exception types to handle.
        interrupted: message at Ctrl-C.

    Raises:
        SystemExit: with the sentence.
    """
    try:
        yield
    except kinds as error:
        text = str(error)
        if isinstance(error, RunError):  # from a worker: a traceback, with the message last
            text = text.rpartition(f"{type(error).__name__}: ")[2].strip()
        raise SystemExit(f"error: {text}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"error: {interrupted}") from None

"""When a run stops before its end: a signal, or the end of the launcher; one process hears it, all follow."""

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

__all__ = ["Stop", "heed_parent_alone", "loading"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # variables that accelerate and torchrun set
NOTICE = b"\nstopping at the next line of metrics, with a checkpoint\n"
ECHO = 1.0  # seconds within which a launcher may pass a terminal's Ctrl-C on to us, who have it already


class Stop:
    """The wish of any process to stop; as a context, it takes the place of what Python does at the signals.

    SIGTERM and the first Ctrl-C are wishes, and so is the end of the launcher, which accelerate's does not pass
    on to the process it started. A later Ctrl-C interrupts at once.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        """Start without a wish."""
        self.accelerator = accelerator
        self.asked: float | None = None
        self.launcher = os.getppid() if any(name in os.environ for name in LAUNCHERS) else None

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether any process wishes to stop; all must ask together. One number is read from the device."""
        orphaned = self.launcher is not None and os.getppid() != self.launcher
        wish = torch.tensor(float(self.asked is not None or orphaned), device=self.accelerator.device)
        return bool(self.accelerator.reduce(wish, "sum").item())

    def _ask(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
            if self.accelerator.is_main_process:
                os.write(2, NOTICE)  # print may be what the signal has interrupted
        elif number == signal.SIGINT and now - self.asked > ECHO:
            raise KeyboardInterrupt


def loading(workers: int) -> dict[str, Any]:
    """Options of a ``DataLoader`` whose workers outlive the signals that come to the whole group of a run.

    On Linux they are forked whatever Python's start method is: those of a fork server would have it as their
    parent, and SIGTERM ends it.
    """
    forked = sys.platform == "linux" and workers > 0
    return {
        "num_workers": workers,
        "worker_init_fn": _start_worker,
        "multiprocessing_context": "fork" if forked else None,
    }


def _start_worker(_: int) -> None:
    heed_parent_alone()


def heed_parent_alone() -> None:
    """Live through the signals that come to the whole group of a run, as one of its workers.

    Only the process that started this one may end it, as it does when it ends itself. Where the system does not
    tell who sends a signal (macOS), SIGTERM ends the worker, whoever sends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)

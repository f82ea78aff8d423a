"""When a run stops before its end: a signal, or the end of the launcher; one process hears it, all follow."""

import functools
import os
import signal
import sys
import threading
import time
from multiprocessing.context import ForkContext, ForkProcess
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

from training.engine.launcher import launcher

__all__ = ["Stop", "loading"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEAVE: Any = getattr(signal, "SIGRTMIN", None)  # Linux: nothing else uses it, and no SIGTERM is mistaken for it
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
        self.launcher = launcher()  # any other parent may end: of nohup, setsid

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether any process wishes to stop; all must ask together. One number is read from the device."""
        orphaned = self.launcher is not None and os.getppid() != self.launcher.pid
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

    Where there is no Linux, this holds for Ctrl-C alone.
    """
    if sys.platform != "linux":
        return {"num_workers": workers, "worker_init_fn": _ignore_ctrl_c}
    return {"num_workers": workers, "multiprocessing_context": _Forks() if workers else None}


class _Worker(ForkProcess):
    """A process that is deaf, from its birth, to signals for a group; the one that started it has its own.

    It is forked whatever Python's start method is: of a fork server it would have another mask and another parent.
    """

    _popen: Any
    pid: int

    def start(self) -> None:
        """Fork with the signals blocked, which the worker inherits; they reach this process afterwards."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, LEAVE})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._popen.terminate = functools.partial(os.kill, self.pid, LEAVE)  # which ends it when this process ends

    def run(self) -> None:
        """Work, until told to leave."""
        threading.Thread(target=_leave_when_told, daemon=True).start()
        super().run()


class _Forks(ForkContext):
    Process = _Worker


def _leave_when_told() -> None:
    signal.sigwait([LEAVE])
    os._exit(0)  # what torch takes for a worker that has ended well


def _ignore_ctrl_c(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

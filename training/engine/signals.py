"""Stop a run early on a signal or the end of the launcher, on all processes."""

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
EXIT_SIGNAL: Any = getattr(signal, "SIGRTMIN", None)  # Linux: unused otherwise, and different from SIGTERM
NOTICE = b"\nstopping at the next line of metrics, with a checkpoint\n"
ECHO = 1.0  # seconds in which a launcher may forward a Ctrl-C that this process already got


class Stop:
    """A request to stop, from any process; as a context, it handles the signals.

    SIGTERM, the first Ctrl-C and the end of the launcher (which accelerate's does not forward) are requests to
    stop. A later Ctrl-C interrupts at once.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.asked: float | None = None
        self.launcher = launcher()  # other parents may end, such as nohup or setsid

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._request_stop) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def should_stop(self) -> bool:
        """Whether any process got a request to stop; a collective call, with one number read from the device."""
        orphaned = self.launcher is not None and os.getppid() != self.launcher.pid
        wish = torch.tensor(float(self.asked is not None or orphaned), device=self.accelerator.device)
        return bool(self.accelerator.reduce(wish, "sum").item())

    def _request_stop(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
            if self.accelerator.is_main_process:
                os.write(2, NOTICE)  # the signal may have interrupted a print
        elif number == signal.SIGINT and now - self.asked > ECHO:
            raise KeyboardInterrupt


def loading(workers: int) -> dict[str, Any]:
    """Options of a ``DataLoader`` whose workers ignore signals to the process group of a run.

    On other systems than Linux they only ignore Ctrl-C.
    """
    if sys.platform != "linux":
        return {"num_workers": workers, "worker_init_fn": _ignore_ctrl_c}
    return {"num_workers": workers, "multiprocessing_context": _Forks() if workers else None}


class _Worker(ForkProcess):
    """A worker with SIGINT and SIGTERM blocked from its start; its parent keeps its own mask.

    It is always forked, since a fork server would give it another signal mask and parent.
    """

    _popen: Any
    pid: int

    def start(self) -> None:
        """Fork with the signals blocked, which the worker inherits; this process receives them afterwards."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, EXIT_SIGNAL})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._popen.terminate = functools.partial(os.kill, self.pid, EXIT_SIGNAL)  # called when this process ends

    def run(self) -> None:
        """Run until the exit signal."""
        threading.Thread(target=_exit_on_signal, daemon=True).start()
        sys.excepthook = _print_unless_cut_off
        super().run()


class _Forks(ForkContext):
    Process = _Worker


def _exit_on_signal() -> None:
    signal.sigwait([EXIT_SIGNAL])
    os._exit(0)  # which torch treats as a normal exit


def _print_unless_cut_off(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say nothing where the training process ended in the midst of taking a batch: it has said why."""
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _ignore_ctrl_c(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""Small runs in separate processes, for tests with kills."""

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["TINY", "Launch", "images"]

TINY = (
    "demo --backbone slotcon_nano --view-size 32 --num-prototypes 5 --hidden-dim 16 --out-dim 8 --batch-size 8 "
    "--epochs 3 --warmup-epochs 1 --base-lr 1 --save-every 1 --log-every 3 --show-every 2 --threads 1"
)
"""12 steps on 32 images; lines of metrics are written within epochs and at their ends."""

PROCESSES = multiprocessing.get_context("forkserver")  # imports torch once for all runs
PROCESSES.set_forkserver_preload(["training.pretrain", "torch.utils.tensorboard"])


def pretrain(argv: list[str]) -> None:
    """Train."""
    from training import pretrain

    pretrain.main(argv)


class Launch:
    """A run in separate processes, started as by torchrun."""

    def __init__(
        self,
        argv: Sequence[object],
        log: Path,
        processes: int = 1,
        main: Callable[[list[str]], None] = pretrain,
    ) -> None:
        """Start ``main`` with these arguments on several processes; their output goes to ``log``."""
        self.log, self.started = log, time.time()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [str(word) for word in argv]
        self.ranks = [
            PROCESSES.Process(target=_start, args=(main, words, log, rank, processes, port))
            for rank in range(processes)
        ]
        for process in self.ranks:
            process.start()

    def running(self) -> bool:
        """Whether any process is running."""
        return any(process.is_alive() for process in self.ranks)

    def signal(self, number: int, *ranks: int) -> None:
        """Send a signal to some or all ranks and their data-loading workers."""
        for process in [self.ranks[rank] for rank in ranks] or self.ranks:
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):  # it has ended in between
                    os.killpg(process.pid or 0, number)

    def end(self, patience: float = 300) -> list[int]:
        """Wait for all processes, and return their exit codes.

        Raises:
            TimeoutError: they did not end in time, and were killed.
        """
        limit = time.time() + patience
        for process in self.ranks:
            process.join(max(limit - time.time(), 0))
        if self.running():
            self.signal(signal.SIGKILL)
            raise TimeoutError(f"the run does not end:\n{self.log.read_text()}")
        return [process.exitcode or 0 for process in self.ranks]


def _start(
    main: Callable[[list[str]], None], argv: list[str], log: Path, rank: int, processes: int, port: int
) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the training's workers use the default start method
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if processes > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {name: str(value) for name, value in names.items()}
    main(argv)


def images(folder: Path, count: int = 32, seed: int = 0) -> Path:
    """Fill a folder with small JPEGs of coloured blocks."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(blocks).save(folder / f"{number:03}.jpg", quality=95)
    return folder

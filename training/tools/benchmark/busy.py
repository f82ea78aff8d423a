"""Training and evaluation on a busy CPU, with waiting threads that spin briefly, not at all, or for long."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import torch
from rich.table import Table

from training.engine.processes import init_distributed
from training.engine.words import show
from training.pretraining.recipes import RECIPES
from training.tools.benchmark.step import _Trained

__all__ = ["benchmark"]

SPINS = 300_000  # libgomp's default spin count before a thread sleeps
WAITING = {
    "briefly": {},  # what importing training sets
    "sleep": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "spin": {"GOMP_SPINCOUNT": str(SPINS)},
}
WORK = ("training step", "evaluation, 4 batches")
BATCH = 64


def benchmark(others: int = 2, rounds: int = 9, steps: int = 3) -> None:
    """Print the seconds of a training step of the demo and of an evaluation, alone and beside busy processes.

    Processes alternate: in the first, waiting threads spin briefly before they sleep, as in our commands; in the
    second they sleep at once; in the third they spin for long, as by default. Medians of all rounds.

    Args:
        others: processes that each keep a core busy.
        rounds: of all measurements.
        steps: training steps, and evaluations, per measurement.

    Raises:
        ValueError: a number is too small.
    """
    if min(others, rounds, steps) < 1:
        raise ValueError("rounds, steps and others must be at least 1")
    times: dict[tuple[str, str, bool], list[float]] = {}
    with contextlib.ExitStack() as stack:
        workers = {waiting: stack.enter_context(_worker(waiting, steps)) for waiting in WAITING}
        for number in range(rounds):
            turn = number % len(WAITING)
            for busy in (False, True):
                with _busy(others if busy else 0):
                    for waiting in (*WAITING, *WAITING)[turn : turn + len(WAITING)]:
                        for work, seconds in zip(WORK, workers[waiting](), strict=True):
                            times.setdefault((work, waiting, busy), []).append(seconds)
    _show(times, others)


@contextlib.contextmanager
def _worker(waiting: str, steps: int) -> Iterator[Callable[[], list[float]]]:
    """A process that measures on request; its wait policy is read when it loads torch."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_WAIT", "GOMP_"))} | WAITING[waiting]
    env["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, "-c", f"from training.tools.benchmark.busy import serve; serve({steps})"]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, said = process.stdin, process.stdout

        def measure() -> list[float]:
            asked.write("\n")
            asked.flush()
            return json.loads(said.readline())

        try:
            yield measure
        finally:
            process.kill()


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    command = [sys.executable, "-c", "import os; us = os.getppid()\nwhile os.getppid() == us: pass"]  # ends with us
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def serve(steps: int) -> None:
    """For every line of input, print the median seconds of each kind of work."""
    recipe = replace(RECIPES["demo"][1], trackers=(), mixed_precision="no", threads=None)  # of all cores
    trained = _Trained(recipe, init_distributed(recipe), BATCH)
    network, images = trained.slotcon.teacher.backbone, torch.randn(BATCH, 3, recipe.view_size, recipe.view_size)

    def evaluate() -> None:
        with torch.inference_mode():
            for _ in range(4):
                network(images)

    for work in (trained.step, evaluate):  # warm-up
        work()
    for _ in sys.stdin:
        print(json.dumps([_median(work, steps) for work in (trained.step, evaluate)]), flush=True)


def _median(work: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _show(times: dict[tuple[str, str, bool], list[float]], others: int) -> None:
    table = Table("", "threads that wait", "alone, s", f"beside {others} busy processes, s", "times as long")
    for work in WORK:
        for waiting in WAITING:
            alone, busy = (median(times[work, waiting, busy]) for busy in (False, True))
            table.add_row(work, waiting, f"{alone:.3f}", f"{busy:.3f}", f"{busy / alone:.1f}")
    show(table)
    for work in WORK:
        rounds = zip(times[work, "briefly", False], times[work, "spin", False], strict=True)
        ratio = median(brief / long for brief, long in rounds) - 1
        print(f"{work}: alone, spinning briefly costs {ratio:+.1%} (median of the rounds)")

"""Kill and resume a run, and compare its result with an undisturbed run."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.tools.reliability.launch import Launch

__all__ = ["MOMENTS", "KillResult", "differences", "kill_runs"]

MEASURED = ("images_per_second", "data_wait", "memory_gb")
"""Metrics that differ between equal runs."""

MOMENTS: dict[str, tuple[Callable[[Path], Iterable[Path]], float]] = {
    "while it sets up": (lambda folder: [], 2.0),
    "in a step": (lambda folder: folder.glob("metrics.jsonl"), 1.0),
    "in a save": (lambda folder: folder.glob("checkpoints/.step-*"), 0.03),
    "at the end of an epoch": (lambda folder: folder.glob("checkpoints/step-*"), 0.01),
    "in the export": (lambda folder: folder.glob(".export-*"), 0.3),
}
"""When to kill: after one of these paths appears or changes (the first: at once), plus up to this many seconds."""


def _wait(launch: Launch, folder: Path, moment: str, pause: float) -> bool:
    """Wait for a moment; False if the run ends first."""
    paths, longest = MOMENTS[moment]
    while launch.running():
        if moment == "while it sets up" or _new(paths(folder), launch.started):
            time.sleep(pause * longest)
            return launch.running()
        time.sleep(0.0005)
    return False


def _new(paths: Iterable[Path], since: float) -> bool:
    try:
        return any(path.stat().st_mtime > since for path in paths)
    except FileNotFoundError:  # removed meanwhile
        return True


@dataclass
class KillResult:
    """Counts of kills and their results."""

    kills: Counter[str] = field(default_factory=Counter)
    """By moment."""
    half_saves: int = 0
    """Kills that left a partly written or removed checkpoint."""
    runs: int = 0
    """Finished runs."""
    differing: int = 0
    """Finished runs that differ from the undisturbed run."""
    lost: list[str] = field(default_factory=list)
    """Descriptions of the differences."""


def kill_runs(
    argv: Sequence[object], whole: Path, folder: Path, moments: Sequence[str], *, processes: int = 1, seed: int = 0
) -> KillResult:
    """Kill and resume runs at each moment in turn, and compare each finished run.

    Args:
        argv: of the training, without ``--output``.
        whole: the folder of an undisturbed run with these arguments.
        folder: for the runs.
        moments: names of ``MOMENTS``; if a run ends before its moment, another is started.
        processes: number of training processes; one is killed shortly before the others.
        seed: of the delays.
    """
    rng, result, left = random.Random(seed), KillResult(), list(moments)
    number = -1
    while True:
        number += 1
        run, log = folder / f"run-{number}", folder / f"run-{number}.log"
        while True:
            launch = Launch([*argv, "--output", run, "--resume"], log, processes)
            if not left or not _wait(launch, run, left[0], rng.random()):
                break
            launch.signal(signal.SIGKILL, rng.randrange(processes))
            time.sleep(rng.choice([0, 0.2]) if processes > 1 else 0)
            launch.signal(signal.SIGKILL)
            launch.end()
            result.kills[left.pop(0)] += 1
            result.half_saves += _new(run.glob("checkpoints/.step-*"), launch.started)
        failed = any(launch.end())
        found = [f"it ended with an error, see {log}"] if failed else differences(whole, run)
        result.runs += 1
        result.differing += bool(found)
        result.lost += [f"{run}: {what}" for what in found]
        if not left:
            return result


def differences(whole: Path, run: Path) -> list[str]:
    """Differences of metrics, final states and exports of two finished runs, except time and memory."""
    found = [] if _lines(whole) == _lines(run) else ["metrics.jsonl"]
    last = sorted((whole / "checkpoints").glob("step-*"))[-1].relative_to(whole)
    files = [last / "model.safetensors", last / "optimizer.pt"]
    files += [path.relative_to(whole) for path in (whole / "export").rglob("*.safetensors")]
    for file in files:
        if not (run / file).exists() or (whole / file).read_bytes() != (run / file).read_bytes():
            found.append(str(file))
    return found


def _lines(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]

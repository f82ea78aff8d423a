"""The command: kills and bad images."""

import itertools
import random
import shutil
import tempfile
from pathlib import Path

import tyro
from rich.table import Table

from training.engine.words import show
from training.tools.reliability.bad_images import train_on_bad_images
from training.tools.reliability.kills import MOMENTS, KillResult, kill_runs
from training.tools.reliability.launch import TINY, Launch, images


def main(kills: int = 20, seed: int = 0) -> None:
    """Kill and resume trainings, train on bad images, and count the results.

    Args:
        kills: number of SIGKILLs, divided over trainings on one and two processes, without and with a worker.
        seed: of the moments of the kills.
    """
    place = Path(tempfile.mkdtemp(prefix="reliability-"))
    data = images(place / "images")
    moments = list(itertools.islice(itertools.cycle(MOMENTS), kills))
    random.Random(seed).shuffle(moments)
    kinds = [(processes, workers) for processes in (1, 2) for workers in (0, 1)]
    results: dict[str, KillResult] = {}
    for number, (processes, workers) in enumerate(kinds):
        title = f"{_count(processes, 'process')}, {_count(workers, 'worker')}"
        print(f"killing runs on {title} ...", flush=True)
        folder = place / f"{processes}-{workers}"
        folder.mkdir()
        argv = [*TINY.split(), "--data", data, "--workers", workers]
        log = folder / "whole.log"
        if any(Launch([*argv, "--output", folder / "whole"], log, processes).end()):
            raise SystemExit(f"the undisturbed run failed: see the end of {log}")
        here = moments[number :: len(kinds)]
        results[title] = kill_runs(argv, folder / "whole", folder, here, processes=processes, seed=seed)
    print("training on bad images ...", flush=True)
    tried, wrong = train_on_bad_images(place / "bad")
    show(_table(results))
    trouble = [what for result in results.values() for what in result.lost] + wrong
    if trouble:
        raise SystemExit("\n".join([*trouble, f"all files are in {place}"]))
    shutil.rmtree(place)
    print(f"{kills} kills: every run has the losses and weights of an undisturbed one, bit for bit")
    print(f"{tried} bad or unusual images: the run finished, and reported exactly the unreadable ones")


def _table(results: dict[str, KillResult]) -> Table:
    table = Table("killed", *results)
    for moment in MOMENTS:
        table.add_row(moment, *(str(result.kills[moment]) for result in results.values()))
    table.add_section()
    table.add_row("partial checkpoints left", *(str(result.half_saves) for result in results.values()))
    table.add_row("finished runs", *(str(result.runs) for result in results.values()))
    table.add_row("of these not exact", *(str(result.differing) for result in results.values()))
    return table


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}{'es' if thing.endswith('s') else 's'}"


if __name__ == "__main__":
    tyro.cli(main, prog="python -m training.reliability")

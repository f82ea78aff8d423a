"""The command: kills and bad pictures, counted."""

import itertools
import random
import shutil
import tempfile
from pathlib import Path

import tyro
from rich import print as show
from rich.table import Table

from training.reliability.bad_pictures import meet_bad_pictures
from training.reliability.kills import MOMENTS, storm
from training.reliability.launch import TINY, Launch, pictures


def main(kills: int = 20, seed: int = 0) -> None:
    """Kill trainings and resume them, show others bad pictures, and count what they survive.

    Args:
        kills: with SIGKILL, shared out over trainings on one and on two processes, without and with workers.
        seed: of the moments.
    """
    place = Path(tempfile.mkdtemp(prefix="reliability-"))
    data = pictures(place / "pictures")
    moments = list(itertools.islice(itertools.cycle(MOMENTS), kills))
    random.Random(seed).shuffle(moments)
    kinds = [(processes, workers) for processes in (1, 2) for workers in (0, 1)]
    table = Table("processes", "workers", *MOMENTS, "checkpoints cut", "runs", "not exact", title="kills")
    trouble: list[str] = []
    for number, (processes, workers) in enumerate(kinds):
        print(f"killing runs on {processes} process(es) with {workers} worker(s) ...", flush=True)
        folder = place / f"{processes}-{workers}"
        folder.mkdir()
        argv = [*TINY.split(), "--data", data, "--workers", workers]
        Launch([*argv, "--output", folder / "whole"], folder / "whole.log", processes).end()
        here = moments[number :: len(kinds)]
        result = storm(argv, folder / "whole", folder, here, processes=processes, seed=seed)
        counts = [result.kills[moment] for moment in MOMENTS]
        table.add_row(*map(str, [processes, workers, *counts, result.half_saves, result.runs, result.differing]))
        trouble += result.lost
    print("showing a run bad pictures ...", flush=True)
    tried, wrong = meet_bad_pictures(place / "bad")
    show(table)
    if trouble + wrong:
        raise SystemExit("\n".join([*trouble, *wrong, f"all is kept in {place}"]))
    shutil.rmtree(place)
    print(f"{kills} kills: every run ended with the losses and weights, bit for bit, of one that nobody disturbed")
    print(f"{tried} bad or odd pictures: the run ended well, and named those that cannot be read, and no other")


if __name__ == "__main__":
    tyro.cli(main)

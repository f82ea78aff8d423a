"""The command: kills and bad images, counted."""

import itertools
import random
import shutil
import tempfile
from pathlib import Path

import tyro
from rich.table import Table

from training.engine.words import show
from training.tools.reliability.bad_images import meet_bad_images
from training.tools.reliability.kills import MOMENTS, Storm, storm
from training.tools.reliability.launch import TINY, Launch, images


def main(kills: int = 20, seed: int = 0) -> None:
    """Kill trainings and resume them, show others bad images, and count what they survive.

    Args:
        kills: with SIGKILL, shared out over trainings on one and on two processes, without and with a worker.
        seed: of the moments.
    """
    place = Path(tempfile.mkdtemp(prefix="reliability-"))
    data = images(place / "images")
    moments = list(itertools.islice(itertools.cycle(MOMENTS), kills))
    random.Random(seed).shuffle(moments)
    kinds = [(processes, workers) for processes in (1, 2) for workers in (0, 1)]
    results: dict[str, Storm] = {}
    for number, (processes, workers) in enumerate(kinds):
        title = f"{_count(processes, 'process')}, {_count(workers, 'worker')}"
        print(f"killing runs on {title} ...", flush=True)
        folder = place / f"{processes}-{workers}"
        folder.mkdir()
        argv = [*TINY.split(), "--data", data, "--workers", workers]
        log = folder / "whole.log"
        if any(Launch([*argv, "--output", folder / "whole"], log, processes).end()):
            raise SystemExit(f"the run that nobody disturbs ended with an error: see the end of {log}")
        here = moments[number :: len(kinds)]
        results[title] = storm(argv, folder / "whole", folder, here, processes=processes, seed=seed)
    print("showing a run bad images ...", flush=True)
    tried, wrong = meet_bad_images(place / "bad")
    show(_table(results))
    trouble = [what for result in results.values() for what in result.lost] + wrong
    if trouble:
        raise SystemExit("\n".join([*trouble, f"all is kept in {place}"]))
    shutil.rmtree(place)
    print(f"{kills} kills: every run ended with the losses and weights, bit for bit, of one that nobody disturbed")
    print(f"{tried} bad or odd images: the run ended well, and named those that cannot be read, and no other")


def _table(results: dict[str, Storm]) -> Table:
    table = Table("killed", *results)
    for moment in MOMENTS:
        table.add_row(moment, *(str(result.kills[moment]) for result in results.values()))
    table.add_section()
    table.add_row("half a checkpoint left behind", *(str(result.half_saves) for result in results.values()))
    table.add_row("runs brought to their end", *(str(result.runs) for result in results.values()))
    table.add_row("of these not exact", *(str(result.differing) for result in results.values()))
    return table


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}{'es' if thing.endswith('s') else 's'}"


if __name__ == "__main__":
    tyro.cli(main, prog="python -m training.reliability")

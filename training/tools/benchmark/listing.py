"""How long it takes until the images of a data set are listed, with their classes."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from rich.table import Table
from tqdm.auto import tqdm

from training.data.images import open_images
from training.data.labels import open_labeled
from training.engine.words import show

__all__ = ["benchmark"]


def benchmark(classes: int = 1000, per_class: int = 100, rounds: int = 3, folder: Path | None = None) -> None:
    """Print how long listing takes: of a folder with a folder for each class, made for this and removed afterwards.

    The files are empty: listing opens none. They have just been made, so that the disk's cache is warm. ImageNet
    has 1000 classes of 1281.

    Args:
        classes: Class folders.
        per_class: Files in each.
        rounds: Of which the median counts.
        folder: Where the temporary folder is made, to measure another disk; None takes the system's place.

    Raises:
        ValueError: a number is too small.
    """
    if min(classes, per_class, rounds) < 1:
        raise ValueError("list 1 class or more, of 1 file or more, in 1 round or more")
    with tempfile.TemporaryDirectory(prefix="listing-", dir=folder) as place:
        _make(Path(place), classes, per_class)
        listings = {
            "with their classes: knn, linear, --probe, fine-tuning": lambda: len(
                open_labeled(place, "train").labels
            ),
            "without: pre-training": lambda: len(open_images(place)),
        }
        seconds = {
            name: median(_time(listing, classes * per_class) for _ in range(rounds))
            for name, listing in listings.items()
        }
    table = Table("images", "s", "files/s", title_justify="left")
    table.title = f"{classes * per_class:,} files in {classes:,} class folders"
    for name, taken in seconds.items():
        table.add_row(name, f"{taken:.2f}", f"{classes * per_class / taken:,.0f}")
    show(table)


def _make(place: Path, classes: int, per_class: int) -> None:
    for number in tqdm(range(classes), "making class folders", leave=False):
        folder = place / "train" / f"class-{number:05d}"
        folder.mkdir(parents=True)
        for file in range(per_class):
            (folder / f"{file:08d}.JPEG").touch()


def _time(listing: Callable[[], int], files: int) -> float:
    start = time.perf_counter()
    found = listing()
    taken = time.perf_counter() - start
    assert found == files
    return taken

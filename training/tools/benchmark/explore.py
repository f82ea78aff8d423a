"""The page of ``slotcon-hub explore`` beside ``slotcon-hub segment``: from an image to groups, and a click."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from rich.table import Table

from slotcon_hub.cli.segment import write_segments
from slotcon_hub.concepts.inference import segment_image
from slotcon_hub.images import decode
from training.engine.words import show
from training.tools.benchmark.data import make_images

__all__ = ["benchmark"]


def benchmark(model: str = "slotcon_nano_proto", size: int = 128, side: int = 640, rounds: int = 9) -> None:
    """Print the milliseconds from an image to its groups, by the page and by the command, and those of a click.

    The page also computes principal components; the command also writes its files. What a browser and its
    connection take is left out.

    Args:
        model: prototype model with weights.
        size: short side for the network, in pixels.
        side: long side of the image, in pixels.
        rounds: whose median counts.

    Raises:
        ValueError: a number is too small, there is no such model, or gradio is not installed.
    """
    if min(size, side, rounds) < 1:
        raise ValueError("size, side and rounds must be at least 1")
    try:
        from slotcon_hub.explore import app
        from slotcon_hub.explore.analysis import analyze, decode_for_display
    except ImportError as error:
        raise ValueError(f"the page needs gradio ({error}): pip install 'path/to/slotcon_hub[explore]'") from None
    (explored,) = app.load_models([model])
    data = make_images(side, 1)[0]
    seen = analyze(explored.model, decode_for_display(data), size)

    def command() -> None:
        with tempfile.TemporaryDirectory() as folder:
            image = decode(data)
            groups, segments = segment_image(explored.model, image, size=size)
            write_segments(Path(folder), "image", image, groups, segments, explored.model.num_classes, {})

    works: dict[str, Callable[[], object]] = {
        "the page, from an image to its groups": lambda: app.views_of(
            analyze(explored.model, decode_for_display(data), size)
        ),
        "slotcon-hub segment, with its files": command,
        "a click": lambda: app.details_of(explored, seen, 0, 0),
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            taken[name].append(1000 * (time.perf_counter() - start))
    table = Table(f"{model}, {side} px, network {size} px", "ms")
    for name, times in taken.items():
        table.add_row(name, f"{median(times[1:]):.0f}")
    show(table)

"""Peak memory of the evaluation commands, and what each further image adds to it, up to ImageNet's size."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
from rich.table import Table
from tqdm.auto import tqdm

from slotcon_hub.models.saving import save_model
from training.engine.words import show
from training.tools.benchmark.data import make_images

__all__ = ["benchmark"]

IMAGENET = 1_281_167, 50_000  # images for training and validation
CHANNELS = 2048
CLASSES = 10
FEW = 256  # images for the network
CLI = "import sys; from slotcon_hub.cli import main; sys.exit(main())"
# Linux counts the memory of the process that starts another as that other's peak, so a small one starts it.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def benchmark(images: int = 50_000, side: int = 224, model: str = "slotcon_r50") -> None:
    """Print the peak memory of knn, linear and concepts at ImageNet's size, from a measured slope.

    Each command runs on 256 images with the network, then on --images and on three times as many images of 32
    pixels, with a small network whose features have 2048 channels: what the last run needs more than the one before
    is the memory of its further images. The largest process counts.

    Args:
        images: training images of the second run.
        side: of the 256 images, in pixels.
        model: the network, one of our architectures, with random weights.

    Raises:
        ValueError: a number is too small.
    """
    if images <= FEW or side < 32:
        raise ValueError(f"measure more than {FEW} images, and those of 32 pixels or more")
    runs = ((FEW, side), (images, 32), (3 * images, 32))
    table = Table("GB", f"{model}, {FEW} images", *(f"{n:,}" for n, _ in runs[1:]), "bytes an image", "ImageNet")
    with tempfile.TemporaryDirectory(prefix="evaluation-") as place:
        root = Path(place)
        small = timm.create_model("slotcon_nano_proto", out_dim=CHANNELS, hidden_dim=64)
        save_model(small, root / "small", 32)
        save_model(timm.create_model(model, num_classes=0), root / "backbone", side)
        save_model(timm.create_model(f"{model}_proto"), root / "prototypes", side)
        for count, pixels in tqdm(runs, "making images", leave=False):
            _make_folders(root / str(count), count, pixels)
        for name, counted in (("knn", sum(IMAGENET)), ("linear", sum(IMAGENET)), ("concepts", IMAGENET[0])):
            models = ["prototypes" if name == "concepts" else "backbone", "small", "small"]
            few, less, more = (
                _peak(_command(name, root, count, used)) for used, (count, _) in zip(models, runs, strict=True)
            )
            slope = max(more - less, 0) / (2 * images)  # the test images are equally many
            whole = few + slope * counted
            table.add_row(
                name, *(f"{x / 1e9:.2f}" for x in (few, less, more)), f"{slope:,.0f}", f"{whole / 1e9:.2f}"
            )
    show(table)


def _command(name: str, root: Path, count: int, model: str) -> list[str]:
    data = root / str(count)
    if name == "concepts":
        words = ["--model", root / model, "--images", data / "train", "--output", root / f"concepts-{count}"]
        return [sys.executable, "-c", CLI, name, *map(str, words), "--batch-size", "64", "--device", "cpu"]
    return [sys.executable, "-m", f"training.evaluation.{name}", "--models", str(root / model), "--data", str(data)]


def _make_folders(folder: Path, count: int, side: int) -> None:
    """Make training images and a few for validation, in class folders."""
    (data,) = make_images(side, 1)
    for split, number in (("train", count), ("val", CLASSES)):
        for label in range(CLASSES):
            (folder / split / f"class-{label}").mkdir(parents=True)
        for index in range(number):
            (folder / split / f"class-{index % CLASSES}" / f"{index:08d}.jpg").write_bytes(data)


def _peak(command: list[str]) -> int:
    """Run a command on the CPU, and return the peak resident memory of its largest process, in bytes."""
    run = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *command],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise ValueError(f"{' '.join(command)} failed: {run.stderr.strip().splitlines()[-1]}")
    return int(run.stdout) * (1 if sys.platform == "darwin" else 1024)

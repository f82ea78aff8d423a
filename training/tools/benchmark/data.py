"""The input pipeline on one core, compared with the standard one of torchvision and Pillow."""

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from rich.table import Table
from torch import Tensor
from torchvision import transforms

from slotcon_hub.images import ImageFiles, decode
from training.data import color
from training.data.crops import RATIO, SCALE
from training.data.views import TwoViews
from training.engine.words import show
from training.pretraining.pairs import ViewPairs, collate

__all__ = ["InMemory", "benchmark", "make_images"]

ORDINARY = "the standard pipeline: Pillow, image by image"


class InMemory:
    """Encoded images in memory."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Index of an image as text."""
        return f"image {index}"

    def read(self, index: int) -> bytes:
        """Bytes of an image."""
        return self.files[index]

    def digest(self) -> str:
        """SHA-256 of all bytes."""
        return hashlib.sha256(b"".join(self.files)).hexdigest()


def benchmark(data: Path | None = None, side: int = 640, images: int = 16, rounds: int = 30) -> None:
    """Print how many images per second one core decodes, crops to two views of 224 pixels, and colour-augments.

    Disk reads are excluded. The pipelines alternate in every round, so that other load affects all equally; CPU
    time, median of the rounds.

    Args:
        data: folder of images; None generates some with the spectrum of natural images.
        side: longer side in pixels after resizing; saved as JPEG of quality 90.
        images: number of images.
        rounds: of measurement.

    Raises:
        ValueError: the folder holds no image.
    """
    files = InMemory(_photographs(data, side, images) if data else make_images(side, images))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = _measure(_candidates(files), rounds)
    torch.set_num_threads(threads)

    size = sum(map(len, files.files)) / len(files) / 1000
    source = f"from {data}" if data else "made here"
    table = Table("on one core", "images a second", "ratio", title_justify="left")
    table.title = f"{len(files)} JPEGs {source}, {side} px, {size:.0f} kB on average; torch {torch.__version__}"
    for name, time_taken in seconds.items():
        ratio = seconds[ORDINARY] / time_taken
        table.add_row(name, f"{len(files) / time_taken:.0f}", f"{ratio:.2f}")
    show(table)


def _candidates(files: InMemory) -> dict[str, Callable[[], object]]:
    """Pipelines by name; each processes all images."""
    pairs = ViewPairs(files, TwoViews(), seed=0)
    ordinary = [_ordinary_view(view) for view in (1, 2)]

    def worker() -> dict[str, Tensor]:
        return collate(pairs.__getitems__([(0, index) for index in range(len(files))]))

    def whole() -> Tensor:
        batch = worker()
        return color.apply(batch["views"].flatten(0, 1), batch["color"].flatten(0, 1))

    def usual() -> Tensor:
        opened = [Image.open(io.BytesIO(file)).convert("RGB") for file in files.files]
        return torch.stack([view(image) for view in ordinary for image in opened])

    return {
        "decoding only, torchvision: upper bound": lambda: [decode(file) for file in files.files],
        "decoding only, Pillow": lambda: [Image.open(io.BytesIO(file)).convert("RGB") for file in files.files],
        "a worker: decode, crop, resize, flip": worker,
        "a worker and colour augmentation on the CPU": whole,
        ORDINARY: usual,
    }


def _measure(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    torch.manual_seed(0)
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: float(np.median(taken[1:])) for name, taken in seconds.items()}


def _ordinary_view(view: int) -> Callable[[Image.Image], Tensor]:
    """The standard augmentation of view 1 or 2, for one Pillow image."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, SCALE, RATIO, transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=color.JITTER),
            transforms.RandomGrayscale(color.GRAY),
            transforms.RandomApply([_blur], p=color.BLUR[view]),
            transforms.RandomSolarize(128, p=color.SOLARIZE[view]),
            transforms.ToTensor(),
            transforms.Normalize(color.MEAN, color.STD),
        ]
    )


def _blur(image: Image.Image) -> Image.Image:
    low, high = color.SIGMAS
    return image.filter(ImageFilter.GaussianBlur(low + (high - low) * float(torch.rand(()))))


def _photographs(folder: Path, side: int, count: int) -> list[bytes]:
    files = ImageFiles(folder)
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)
    encoded = []
    for index in chosen.tolist():
        image = Image.fromarray(decode(files.read(index)).permute(1, 2, 0).numpy())
        factor = side / max(image.size)
        width, height = (round(length * factor) for length in image.size)
        encoded.append(_encode(image.resize((width, height), Image.Resampling.BICUBIC)))
    return encoded


def make_images(side: int, count: int) -> list[bytes]:
    """Generate 4:3 images with amplitudes that fall with frequency.

    As JPEG they take 2.3 bits per pixel at 640 pixels, similar to natural images (BSDS500, resized likewise: 2.2).
    """
    rng = np.random.default_rng(0)
    height, width = side * 3 // 4, side
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).clip(1 / side)
    encoded = []
    for _ in range(count):
        noise = rng.standard_normal((3, height, width))
        planes = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.4, s=(height, width))
        planes /= planes.std((1, 2), keepdims=True)
        mostly_gray = planes[:1] + 0.2 * planes
        pixels = (128 + 45 * mostly_gray).clip(0, 255).astype(np.uint8)
        encoded.append(_encode(Image.fromarray(pixels.transpose(1, 2, 0))))
    return encoded


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()

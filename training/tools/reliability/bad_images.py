"""Train on damaged and unusual images."""

import io
import itertools
import os
import re
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from training.tools.reliability.launch import TINY, Launch, images

__all__ = ["ODD", "UNREADABLE", "train_on_bad_images"]


def _bad() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Unreadable files, and unusual readable files, by name."""
    image = Image.linear_gradient("L").resize((64, 48)).convert("RGB")

    def encoded(kind: str, drawn: Image.Image = image, **options: object) -> bytes:
        buffer = io.BytesIO()
        drawn.save(buffer, kind, **options)
        return buffer.getvalue()

    jpeg, png, webp = encoded("JPEG"), encoded("PNG"), encoded("WEBP")
    sized = jpeg.index(b"\xff\xc0") + 5
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    unreadable = {
        "empty.jpg": b"",
        "empty.png": b"",
        "text.jpg": b"<html>404 Not Found</html>",
        "noise.webp": np.random.default_rng(0).bytes(2000),
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "cut.webp": webp[: len(webp) // 2],
        "header_alone.jpg": jpeg[:3],
        "header_alone.png": png[:8],
        "zeros.jpg": bytes(5000),
        "65500_pixels_a_side.jpg": jpeg[:sized] + b"\xff\xdc" * 2 + jpeg[sized + 4 :],
        "30000_pixels_a_side.png": png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:],
    }
    odd = {
        "cmyk.jpg": encoded("JPEG", image.convert("CMYK")),
        "grey.jpg": encoded("JPEG", image.convert("L")),
        "progressive.jpg": encoded("JPEG", progressive=True),
        "a_png.jpg": png,
        "a_jpeg.webp": jpeg,
        "sixteen_bits.png": encoded("PNG", Image.fromarray(np.arange(3072, dtype=np.uint16).reshape(48, 64) * 20)),
        "palette.png": encoded("PNG", image.quantize(16), transparency=3),
        "alpha.webp": encoded("WEBP", image.convert("RGBA")),
        "animated.webp": encoded("WEBP", save_all=True, append_images=[image.rotate(180)]),
        "one_pixel.png": encoded("PNG", image.resize((1, 1))),
        "one_row.png": encoded("PNG", image.resize((2000, 1))),
    }
    return unreadable, odd


UNREADABLE, ODD = _bad()


def train_on_bad_images(folder: Path) -> tuple[int, list[str]]:
    """Train an epoch on a folder with as many unreadable images as a run tolerates, and unusual ones.

    Returns:
        The number of bad and unusual images, and the problems.
    """
    data = images(folder / "images", 8)
    for name, content in (UNREADABLE | ODD).items():
        (data / name).write_bytes(content)
    good = sorted(data.glob("00?.jpg"))
    for number, image in zip(range(100 * len(UNREADABLE)), itertools.cycle(good), strict=False):
        os.link(image, data / f"copy-{number}.jpg")
    total = len(list(data.iterdir()))
    options = ["--epochs", 1, "--warmup-epochs", 0, "--batch-size", total // 16, "--workers", 1]
    launch = Launch([*TINY.split(), *options, "--data", data, "--output", folder / "run"], folder / "log")
    codes, words = launch.end(), launch.log.read_text()
    named = set(re.findall(r"skipped, since it cannot be read: .*/(\S+)", words))
    wrong = [f"exit code {codes[0]}"] * any(codes)
    wrong += [f"{name} was not named" for name in sorted(UNREADABLE.keys() - named)]
    wrong += [f"{name} was refused" for name in sorted(named - UNREADABLE.keys())]
    return len(UNREADABLE | ODD), wrong

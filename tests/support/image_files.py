"""Encoded images of every kind that data sets hold."""

import io
import os

import numpy as np
from PIL import Image

ROWS, COLUMNS = np.mgrid[:48, :64]
RGB = Image.fromarray(np.stack([COLUMNS * 4, ROWS * 5, COLUMNS + ROWS], axis=-1).astype(np.uint8))
GREY, ALPHA = RGB.convert("L"), Image.fromarray((COLUMNS * 4).astype(np.uint8))
DEEP = (COLUMNS * 1000 + ROWS).astype(np.uint16)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(image):
    image = image.copy()
    image.putalpha(ALPHA)
    return image


def refuse_listing(monkeypatch, name):
    """Let a folder of this name have no permission to list it."""
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def filled(value):
    return Image.new("RGB", (8, 8), (value, value, value))


KINDS = {
    "rgb.jpg": encode(RGB, "JPEG"),
    "grey.JPG": encode(GREY, "JPEG"),
    "cmyk.jpeg": encode(RGB.convert("CMYK"), "JPEG"),
    "progressive.JPEG": encode(RGB, "JPEG", progressive=True),
    "rgb.png": encode(RGB, "PNG"),
    "grey.PNG": encode(GREY, "PNG"),
    "grey_alpha.png": encode(with_alpha(GREY), "PNG"),
    "rgba.png": encode(with_alpha(RGB), "PNG"),
    "palette.png": encode(RGB.quantize(16), "PNG"),
    "palette_transparent.png": encode(RGB.quantize(16), "PNG", transparency=3),
    "palette_alpha.png": encode(RGB.quantize(16), "PNG", transparency=bytes(range(16))),
    "bits.png": encode(RGB.convert("1"), "PNG"),
    "lossy.webp": encode(RGB, "WEBP"),
    "lossless.WebP": encode(RGB, "WEBP", lossless=True),
    "alpha.webp": encode(with_alpha(RGB), "WEBP"),
}
ANIMATED = {
    kind: encode(RGB, kind, save_all=True, append_images=[RGB.rotate(180)]) for kind in ("GIF", "PNG", "WEBP")
}

#!/usr/bin/env bash
# Pillow 12.3.0, torchvision 0.29.1: label masks stored as grey PNGs of 1, 2 or 4 bits come back with other labels.
#
# Optimisers of PNGs and drawing tools store a mask of up to 16 classes with 4 bits a pixel. Both decoders stretch grey
# values to the range of 8 bits: class 1 becomes 17, class 14 becomes 238, and class 15 becomes 255, which most
# segmentation losses ignore. The mode says "L" as for any grey image, so nothing shows that labels were multiplied.
# With a palette the same file keeps its labels.
#
# Seen: "labels 0 1 2 14 15 as 4-bit grey: Pillow 0 17 34 238 255, torchvision 0 17 34 238 255; with a palette:
# Pillow 0 1 2 14 15"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 pillow==12.3.0 numpy
"$folder/env/bin/python" - <<'PY'
import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_png

LABELS = [0, 1, 2, 14, 15]
GREY, PALETTE = 0, 3


def png(color_type: int) -> bytes:
    """A PNG of one row with 4 bits a pixel."""
    nibbles = [*LABELS, 0]
    row = bytes(high << 4 | low for high, low in zip(nibbles[::2], nibbles[1::2]))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", len(LABELS), 1, 4, color_type, 0, 0, 0))]
    if color_type == PALETTE:
        parts.append((b"PLTE", bytes(range(48))))
    parts += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def words(values) -> str:
    return " ".join(str(int(value)) for value in values)


grey = words(np.asarray(Image.open(io.BytesIO(png(GREY)))).ravel())
vision = words(decode_png(torch.frombuffer(bytearray(png(GREY)), dtype=torch.uint8)).flatten())
palette = words(np.asarray(Image.open(io.BytesIO(png(PALETTE)))).ravel())
print(f"labels {words(LABELS)} as 4-bit grey: Pillow {grey}, torchvision {vision}; with a palette: Pillow {palette}")
if (grey, vision, palette) != (words(17 * label for label in LABELS),) * 2 + (words(LABELS),):
    raise SystemExit("this has changed: grey values were stretched to 8 bits before, those of palettes were not")
PY

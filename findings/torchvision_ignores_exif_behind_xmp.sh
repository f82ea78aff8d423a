#!/usr/bin/env bash
# torchvision 0.29.1 (torch 2.14.1, Pillow 13.0.0): decode_image(..., apply_exif_orientation=True) leaves a JPEG as it
# lies when an XMP segment comes before its EXIF segment.
#
# Both are APP1 segments, and no standard fixes their order; editors write XMP first. torchvision asks the first APP1
# segment alone, finds no EXIF in it, and returns the pixels unturned, without a word. Pillow turns the same file.
# Labels drawn on the upright image then lie on a turned one.
#
# Seen: "EXIF first: torchvision (40, 20), Pillow (40, 20); XMP first: torchvision (20, 40), Pillow (40, 20)", as
# (width, height) of a 20 x 40 image whose orientation is 6.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy
"$folder/env/bin/python" - <<'PY'
import io

import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

plain = io.BytesIO()
orientation = Image.Exif()
orientation[0x0112] = 6
Image.new("RGB", (20, 40), (200, 30, 30)).save(plain, "JPEG", exif=orientation)
exif_first = plain.getvalue()
xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp
xmp_first = exif_first[:2] + segment + exif_first[2:]  # behind the start of the image


def sizes(file: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    data = torch.frombuffer(bytearray(file), dtype=torch.uint8)
    height, width = decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True).shape[1:]
    return (width, height), ImageOps.exif_transpose(Image.open(io.BytesIO(file))).size


found = sizes(exif_first), sizes(xmp_first)
print("; ".join(f"{name} first: torchvision {a}, Pillow {b}" for name, (a, b) in zip(("EXIF", "XMP"), found)))
if found != (((40, 20), (40, 20)), ((20, 40), (40, 20))):
    raise SystemExit("this has changed: torchvision left the second file unturned before")
PY

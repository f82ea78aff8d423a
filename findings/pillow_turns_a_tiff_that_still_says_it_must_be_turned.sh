#!/usr/bin/env bash
# Pillow 12.3.0: an opened TIFF states an orientation that Pillow applies by itself when the pixels are read.
#
# For JPEG, PNG and WebP the caller turns the image, as its EXIF orientation says. A TIFF already has the size of the
# turned image when it is opened, its getexif() still names the orientation, and the pixels come turned; only then is
# the tag gone. Code that notes the orientation when it opens the file and turns the pixels later (a reader that
# plans a crop or checks a mask's size first) turns TIFFs twice, without an error where the result is square.
#
# Seen: "JPEG: opened (40, 20) with orientation 6, read (40, 20) with 6; TIFF: opened (20, 40) with orientation 6, read
# (20, 40) with None"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pillow==12.3.0
"$folder/env/bin/python" - <<'PY'
import io

from PIL import Image

ORIENTATION = 0x0112
found = {}
for kind in ("JPEG", "TIFF"):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turn by 90 degrees to the right
    Image.linear_gradient("L").resize((40, 20)).save(file, kind, exif=exif)
    with Image.open(file) as image:
        opened = image.size, image.getexif().get(ORIENTATION)
        image.load()
        found[kind] = opened, (image.size, image.getexif().get(ORIENTATION))
print("; ".join(f"{k}: opened {a[0]} with orientation {a[1]}, read {b[0]} with {b[1]}" for k, (a, b) in found.items()))
expected = {"JPEG": (((40, 20), 6), ((40, 20), 6)), "TIFF": (((20, 40), 6), ((20, 40), None))}
if found != expected:
    raise SystemExit("this has changed: a TIFF was turned while it was read, and stated its orientation until then")
PY

"""Files of images: every kind that data sets hold, damaged ones, and what a folder holds."""

import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import ANIMATED, DEEP, KINDS, RGB, encode, refuse_listing
from PIL import Image, ImageOps
from torch.nn.functional import avg_pool2d

from slotcon_hub import images as images
from slotcon_hub.images import EncodedImage, ImageFiles, decode

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the reference
def test_decodes_every_kind_of_file(tmp_path, name):
    file = tmp_path / "a" / "b c" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(KINDS[name])
    files = ImageFiles(tmp_path)
    image = decode(files.read(0))
    assert (len(files), files.name(0)) == (1, str(file))
    assert (image.dtype, image.shape) == (torch.uint8, (3, 48, 64))
    with Image.open(file) as pil_image:
        expected = np.asarray(pil_image.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(image.numpy().astype(int) - expected).max() <= 2  # JPEG decoders may round differently


def test_jpegs_go_the_fast_way_and_nothing_else(monkeypatch):
    fast = torch.zeros(())
    monkeypatch.setattr(images, "decode_jpeg", lambda *_, **__: fast)
    kinds = {**KINDS, "camera.mpo": encode(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)])}
    assert {name for name, data in kinds.items() if decode(data) is fast} == {
        name for name in kinds if name.lower().endswith(("jpg", "jpeg", "mpo"))
    }


def test_takes_the_image_of_a_camera():
    data = encode(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert torch.equal(decode(data), decode(KINDS["rgb.jpg"]))
    assert torch.equal(decode(data, reduction=2), decode(KINDS["rgb.jpg"], reduction=2))


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("name", [*KINDS, "odd.jpg", "odd.png"])
def test_reads_at_a_part_of_the_resolution(name, reduction):
    odd = RGB.crop((0, 0, 61, 35))
    data = KINDS.get(name) or encode(odd, "JPEG" if name.endswith("jpg") else "PNG")
    whole, reduced = decode(data).float(), decode(data, reduction=reduction)
    assert (EncodedImage(data).height, EncodedImage(data).width) == tuple(whole.shape[1:])
    expected = avg_pool2d(whole, reduction, ceil_mode=True)
    assert (reduced.dtype, reduced.shape) == (torch.uint8, expected.shape)
    assert (reduced - expected).abs().mean() < 2


def test_images_smaller_than_their_reduction():
    assert decode(encode(RGB.crop((0, 0, 3, 40)), "JPEG"), reduction=8).shape == (3, 5, 1)
    assert decode(encode(RGB.crop((0, 0, 1, 1)), "PNG"), reduction=8).shape == (3, 1, 1)


def test_reduction_keeps_the_orientation_of_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(RGB, "JPEG", exif=exif)
    stored = decode(encode(RGB, "JPEG"), reduction=2)
    assert torch.equal(decode(data, reduction=2), stored.rot90(-1, (1, 2)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_eight(kind):
    image = decode(encode(Image.fromarray(DEEP), kind))
    assert image.dtype == torch.uint8
    assert np.array_equal(image.numpy(), np.broadcast_to(DEEP >> 8, (3, 48, 64)))


@pytest.mark.parametrize("kind", ANIMATED)
def test_takes_the_first_frame(kind):
    image = decode(ANIMATED[kind])
    assert image.shape == (3, 48, 64)
    difference = image.numpy().astype(int) - np.asarray(RGB).transpose(2, 0, 1)
    assert np.abs(difference).mean() < 10  # GIF has 256 colours


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_of_exif(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    data = encode(RGB, kind, exif=exif)
    assert torch.equal(decode(data), decode(encode(RGB, kind)).rot90(-1, (1, 2)))


def xmp(orientation):
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def segment(head, body):
    return b"\xff\xe1" + (len(head + body) + 2).to_bytes(2, "big") + head + body


def turned(kind, orientation):
    """Images of every way in which a file says how it is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "XMP before EXIF":
        parts = segment(b"http://ns.adobe.com/xap/1.0/\0", xmp(1)), segment(b"Exif\0\0", exif.tobytes()[6:])
    elif kind == "XMP alone":
        parts = (segment(b"http://ns.adobe.com/xap/1.0/\0", xmp(orientation)),)
    elif kind == "EXIF behind the pixels":
        data, body = encode(RGB, "PNG"), b"eXIf" + exif.tobytes()[6:]
        chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        return data[:-12] + chunk + data[-12:]
    else:
        return encode(RGB, kind, exif=exif)
    return KINDS["rgb.jpg"][:2] + b"".join(parts) + KINDS["rgb.jpg"][2:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "TIFF", "XMP before EXIF", "XMP alone", "EXIF behind the pixels"]
)
def test_every_image_is_turned_as_by_pillow(kind, orientation):
    data = turned(kind, orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    encoded = EncodedImage(data)
    assert (encoded.height, encoded.width) == (expected.height, expected.width)
    assert expected.size == ((64, 48) if orientation < 5 else (48, 64))
    difference = encoded.decode().numpy().astype(int) - np.asarray(expected).transpose(2, 0, 1)
    assert np.abs(difference).max() <= 2
    assert decode(data, reduction=2).shape == (3, expected.height // 2, expected.width // 2)


def test_a_damaged_exif_does_not_make_an_image_unreadable():
    data = KINDS["rgb.jpg"][:2] + segment(b"Exif\0\0", b"no header of TIFF") + KINDS["rgb.jpg"][2:]
    assert torch.equal(decode(data), decode(KINDS["rgb.jpg"]))


def test_the_limit_of_pillow_is_adjustable(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OSError, match=r"3072 pixels.*set SLOTCON_HUB_MAX_PIXELS to a larger number"):
        decode(KINDS["rgb.png"])
    monkeypatch.setenv("SLOTCON_HUB_MAX_PIXELS", "3072")
    for name in ("rgb.png", "rgb.jpg"):
        assert decode(KINDS[name]).shape == (3, 48, 64)
    monkeypatch.setenv("SLOTCON_HUB_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="SLOTCON_HUB_MAX_PIXELS=many: give a whole number of pixels"):
        decode(KINDS["rgb.png"])


def test_jpeg_without_its_end_marker():
    assert torch.equal(decode(KINDS["rgb.jpg"][:-2]), decode(KINDS["rgb.jpg"]))


@pytest.mark.parametrize(
    "name", ["rgb.jpg", "cmyk.jpeg", "rgb.png", "palette_alpha.png", "lossy.webp", "alpha.webp"]
)
def test_truncated(name):
    whole = KINDS[name]
    for length in range(0, len(whole) - 24, 7):
        with pytest.raises(OSError, match=":"):
            decode(whole[:length])


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"])
def test_no_image(data):
    for read in (decode, EncodedImage):
        with pytest.raises(OSError, match="cannot identify image file: Pillow does not read this format"):
            read(data)


DAMAGE = """
import sys, warnings
from pathlib import Path
import numpy as np
from slotcon_hub.images import ImageFiles, EncodedImage, decode

warnings.simplefilter("error")
rng = np.random.default_rng(0)
files = ImageFiles(Path(sys.argv[1]))
for index in range(len(files)):
    for _ in range(60):
        data = bytearray(files.read(index))
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            assert decode(bytes(data)).shape[0] == 3
        except OSError:
            pass
"""


def test_damaged(tmp_path):
    # In a process of its own: a decoder written in C may not only raise, but crash.
    for name, data in KINDS.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run([sys.executable, "-c", DAMAGE, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def bomb(side):
    """A PNG of a few kilobytes that claims side x side pixels."""

    def chunk(name, body):
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999)))


@pytest.mark.parametrize("side", [10_000, 30_000, 2**31 - 1])
def test_bombs_are_refused(side):
    with pytest.raises(OSError, match="truncated" if side == 10_000 else "could be decompression bomb"):
        decode(bomb(side))


def test_bombs_that_are_jpegs():
    huge = bytearray(KINDS["rgb.jpg"])
    size = huge.index(b"\xff\xc0") + 5
    huge[size : size + 4] = b"\xff\xdc" * 2  # 65,500 x 65,500 pixels: 12.9 GB
    for read in (decode, EncodedImage):
        with pytest.raises(OSError, match="could be decompression bomb"):
            read(bytes(huge))


def test_lists_images_only(tmp_path):
    hidden = ("._a.jpg", ".hidden.png", ".thumbnails/a.jpg", "sub/._c.webp")
    for name in ("b.jpg", "a.PNG", "sub/deep/c.webp", "notes.txt", "a.gif", "jpg", *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    files = ImageFiles(tmp_path)
    assert [os.path.relpath(files.name(i), tmp_path) for i in range(len(files))] == [
        "a.PNG",
        "b.jpg",
        "sub/deep/c.webp",
    ]


def test_a_hidden_root_is_meant(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.jpg").write_bytes(b"")
    assert len(ImageFiles(tmp_path / ".cache")) == 1


def test_follows_links(tmp_path):
    # as one makes COCO+ of train2017 and unlabeled2017
    for name in ("x/1.jpg", "y/2.jpg"):
        (tmp_path / "disk" / name).parent.mkdir(parents=True)
        (tmp_path / "disk" / name).write_bytes(b"")
    data = tmp_path / "data"
    data.mkdir()
    for link, target in {"x": "../disk/x", "y": "../disk/y", "again": "../disk/y", "loop": "."}.items():
        (data / link).symlink_to(target)
    files = ImageFiles(data)
    assert sorted(os.path.basename(files.name(i)) for i in range(len(files))) == ["1.jpg", "2.jpg"]


def test_reading_what_has_gone(tmp_path):
    (tmp_path / "a.jpg").write_bytes(KINDS["rgb.jpg"])
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    files = ImageFiles(tmp_path)
    (tmp_path / "a.jpg").unlink()
    for index in range(2):
        with pytest.raises(OSError, match="No such file"):
            files.read(index)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"")
    refuse_listing(monkeypatch, "b")
    with pytest.raises(ValueError, match=r"/b cannot be listed \(Permission denied\): make it readable"):
        ImageFiles(tmp_path)


def test_other_endings_are_listed_and_thumbnails_of_a_nas_are_not(tmp_path):
    for name in ("a.bmp", "b.tif", "c.TIFF", "d.jfif", "@eaDir/e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [os.path.basename(path) for path in ImageFiles(tmp_path).paths] == ["a.bmp", "b.tif", "c.TIFF", "d.jfif"]


def test_a_limit_that_is_no_number_is_refused_before_any_image_is_read(tmp_path, monkeypatch):
    (tmp_path / "1.jpg").write_bytes(b"")
    for wanted in ("many", "-1", "0", "1e9"):
        monkeypatch.setenv("SLOTCON_HUB_MAX_PIXELS", wanted)
        with pytest.raises(ValueError, match=f"^SLOTCON_HUB_MAX_PIXELS={wanted}: give a whole number"):
            ImageFiles(tmp_path)

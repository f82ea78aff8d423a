"""Labelled images as they lie on the disk: read exactly, or refused by name."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from slotcon_hub import images
from training.data.masks import CenterSquare, LabeledImages


@pytest.fixture
def folders(tmp_path):
    """Two images with masks, one a folder deeper, of odd sizes."""
    rng = np.random.default_rng(0)
    for name, size in {"a": (5, 7), "deep/b": (33, 1)}.items():
        for folder, shape in (("images", (*size, 3)), ("masks", size)):
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 9, shape).astype(np.uint8)).save(path)
    return tmp_path / "images", tmp_path / "masks"


def test_images_and_masks_are_paired_by_name(folders):
    data = LabeledImages(*folders)
    assert len(data) == 2
    for (image, truth), name in zip(data, ("a.png", "deep/b.png"), strict=True):
        for found, folder in ((image.permute(1, 2, 0), folders[0]), (truth, folders[1])):
            with Image.open(folder / name) as pil_image:
                assert np.array_equal(found.numpy(), np.array(pil_image))


def test_labels_become_classes(folders):
    plain, mapped = (LabeledImages(*folders, labels=m) for m in (None, {i: i // 3 for i in range(9)}))
    assert torch.equal(mapped[0][1], plain[0][1] // 3)


def test_a_palette_and_unlabelled_pixels(folders):
    labels = Image.fromarray(np.array([[3, 255]], dtype=np.uint8))
    labels.putpalette(bytes(range(256)) * 3)
    labels.save(folders[1] / "a.png")
    Image.new("RGB", (2, 1)).save(folders[0] / "a.png")
    assert LabeledImages(*folders, labels={3: 1})[0][1].tolist() == [[1, 255]]


def png(values: np.ndarray, bits: int, *, palette: bool) -> bytes:
    """Grey or palette indices of 1 to 16 bits a sample, as the format defines them."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    height, width = values.shape
    rows = [np.unpackbits(row.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, -bits:] for row in values]
    lines = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, 3 if palette else 0, 0, 0, 0])
    colors = chunk(b"PLTE", bytes(range(3 * 2 ** min(bits, 4)))) if palette else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + colors
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("bits", "palette"), [*((bits, False) for bits in (1, 2, 4, 8, 16)), *((bits, True) for bits in (1, 2, 4, 8))]
)
def test_labels_are_the_samples_whatever_their_bits(folders, bits, palette):
    values = np.random.default_rng(0).integers(0, min(2**bits, 9), (5, 7))
    (folders[1] / "a.png").write_bytes(png(values, bits, palette=palette))
    assert LabeledImages(*folders)[0][1].tolist() == values.tolist()


@pytest.mark.parametrize("orientation", [3, 6])
def test_masks_belong_to_the_upright_image(folders, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(folders[0] / "a.png") as image:
        stored = image.rotate({3: 180, 6: 90}[orientation], expand=True)
        expected = np.array(image)
    stored.save(folders[0] / "a.png", exif=exif)
    image, truth = LabeledImages(*folders)[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    with Image.open(folders[1] / "a.png") as mask:
        labels = np.array(mask)
        mask.rotate({3: 180, 6: 90}[orientation], expand=True).save(folders[1] / "a.png", exif=exif)
    assert np.array_equal(truth.numpy(), labels)
    assert np.array_equal(LabeledImages(*folders)[0][1].numpy(), labels)  # a mask says itself how it is turned


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_the_middle_of_a_strip_needs_little_memory(size, monkeypatch):
    made = []
    resize = images.resize
    monkeypatch.setattr(images, "resize", lambda *a, **k: made.append(resize(*a, **k)) or made[-1])
    image, truth = CenterSquare(16)(torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8))
    assert (image.shape, truth.shape) == ((3, 16, 16), (16, 16))
    assert max(part.numel() for part in made) <= 3 * 16 * 16 * 4


def rename(folders: tuple[Path, Path]) -> None:
    (folders[1] / "a.png").rename(folders[1] / "c.png")


def lose(folders: tuple[Path, Path]) -> None:
    (folders[0] / "a.png").unlink()


def double(folders: tuple[Path, Path]) -> None:
    Image.new("RGB", (7, 5)).save(folders[0] / "a.jpg")


def empty(folders: tuple[Path, Path]) -> None:
    for path in folders[0].rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (rename, r"1 of 2 files have no mask of the same name in .*masks, the first is .*images/a\.png"),
        (lose, r"1 of 2 files have no image of the same name in .*images, the first is .*masks/a\.png"),
        (double, r"a\.png and .*a\.jpg share a name"),
        (empty, r"images holds no .*\.png"),
    ],
)
def test_unpaired_files_are_refused(folders, harm, sentence):
    harm(folders)
    with pytest.raises(ValueError, match=sentence):
        LabeledImages(*folders)


def write_mask(pixels: object, dtype: object = np.uint8) -> object:
    return lambda folders: Image.fromarray(np.array(pixels, dtype=dtype)).save(folders[1] / "a.png")


def cut_short(folder: int) -> object:
    def harm(folders: tuple[Path, Path]) -> None:
        data = (folders[folder] / "a.png").read_bytes()
        (folders[folder] / "a.png").write_bytes(data[: len(data) // 2])

    return harm


def in_color(folders: tuple[Path, Path]) -> None:
    for path in folders[1].rglob("*.png"):
        Image.new("RGB", (7, 5)).save(path)


def disguise(folders: tuple[Path, Path]) -> None:
    Image.new("L", (7, 5)).save(folders[1] / "a.png", "JPEG")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (write_mask(np.full((5, 7), 200)), r"masks/a\.png has the unknown label 200: valid are 0 to 8, and 255"),
        (write_mask(np.zeros((7, 5))), r"masks/a\.png has 5 x 7 pixels, its image 7 x 5"),
        (write_mask(np.zeros((5, 7, 3))), r"masks/a\.png cannot be read as a mask: it holds RGB"),
        (write_mask(np.full((5, 7), 300), np.uint16), r"masks/a\.png has the unknown label 300: valid are 0 to 8"),
        (disguise, r"masks/a\.png cannot be read as a mask: it is JPEG, not PNG"),
        (cut_short(0), r"images/a\.png cannot be read: OSError"),
        (cut_short(1), r"masks/a\.png cannot be read as a mask: "),
    ],
)
def test_what_cannot_be_measured_is_named(folders, harm, sentence):
    harm(folders)
    with pytest.raises(ValueError, match=sentence):
        LabeledImages(*folders, labels={i: i for i in range(9)})[0]


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (
            write_mask(np.full((5, 7), 9)),
            r"masks/a\.png has the unknown label 9: valid are 0 to 8, .* name more classes",
        ),
        (write_mask(np.zeros((7, 5))), r"masks/a\.png has 5 x 7 pixels, its image 7 x 5"),
        (
            in_color,
            r"masks/\S+ cannot be read as a mask: it holds RGB.*; 2 of 2 masks and images are unreadable",
        ),
    ],
)
def test_masks_are_checked_before_the_work(folders, harm, sentence):
    images = LabeledImages(*folders, labels={i: i for i in range(9)})
    assert not images.check(quiet=True)
    (folders[0] / "deep/b.png").write_bytes(b"")  # one alone is left to those who read it
    (error,) = images.check(quiet=True)
    assert "deep/b.png cannot be read: " in str(error)
    harm(folders)
    with pytest.raises(ValueError, match=sentence):
        images.check(quiet=True)


def test_of_many_masks_some_are_checked(folders):
    images = LabeledImages(*folders)
    images.files = images.files[:1] * 9 + images.files[1:]
    write_mask(np.zeros((7, 5)))((folders[0], images.files[-1][1].parent))
    read = []
    images._check = lambda files: read.append(files)
    images.check(most=3, quiet=True)
    assert len(read) == 3


@pytest.mark.parametrize("size", [(20, 33), (47, 31), (9, 4), (1, 3), (16, 16)])
def test_the_middle_is_cut_as_by_pillow(size):
    rng = np.random.default_rng(0)
    pixels, labels = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((*size, 3), size))
    image, truth = tv_tensors.Image(torch.tensor(pixels).permute(2, 0, 1)), tv_tensors.Mask(torch.tensor(labels))
    image, truth = CenterSquare(16)(image, truth)
    height, width = (int(16 * side / min(size)) for side in size)
    top, left = round((height - 16) / 2), round((width - 16) / 2)
    box = (left, top, left + 16, top + 16)
    expected = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR).crop(box)
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.array(expected)).max() <= 1
    expected = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST).crop(box)
    assert np.array_equal(truth.numpy(), np.array(expected))


def test_a_transform_of_torchvision_moves_image_and_mask_together(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / folder / "0.png")
    data = LabeledImages(tmp_path / "images", tmp_path / "masks", transform=v2.RandomCrop(4))
    seen = [data[0] for _ in range(5)]
    assert all(torch.equal(image[0], mask) and mask.shape == (4, 4) for image, mask in seen)
    assert len({mask.sum().item() for _, mask in seen}) > 1

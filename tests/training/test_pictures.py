"""Pictures: every kind of file that data sets hold, damaged ones, and the places they come from."""

import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import pictures
from training.pictures import ImageFiles, ImageTable, decode, open_pictures

datasets = pytest.importorskip("datasets")

ROOT = Path(__file__).parents[2]

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


def filled(value):
    return Image.new("RGB", (8, 8), (value, value, value))


def value_of(source, index):
    return int(decode(source.read(index))[0, 0, 0])


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


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the reference
def test_decodes_every_kind_of_file(tmp_path, name):
    file = tmp_path / "a" / "b c" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(KINDS[name])
    files = ImageFiles(tmp_path)
    picture = decode(files.read(0))
    assert (len(files), files.name(0)) == (1, str(file))
    assert (picture.dtype, picture.shape) == (torch.uint8, (3, 48, 64))
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(picture.numpy().astype(int) - expected).max() <= 2  # JPEG decoders may round differently


def test_jpegs_go_the_fast_way_and_nothing_else(monkeypatch):
    fast = torch.zeros(())
    monkeypatch.setattr(pictures, "decode_jpeg", lambda *_: fast)
    assert {name for name, data in KINDS.items() if decode(data) is fast} == {
        name for name in KINDS if name.lower().endswith(("jpg", "jpeg"))
    }


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_eight(kind):
    picture = decode(encode(Image.fromarray(DEEP), kind))
    assert picture.dtype == torch.uint8
    assert np.array_equal(picture.numpy(), np.broadcast_to(DEEP >> 8, (3, 48, 64)))


@pytest.mark.parametrize("kind", ANIMATED)
def test_takes_the_first_frame(kind):
    picture = decode(ANIMATED[kind])
    assert picture.shape == (3, 48, 64)
    difference = picture.numpy().astype(int) - np.asarray(RGB).transpose(2, 0, 1)
    assert np.abs(difference).mean() < 10  # GIF has 256 colours


def test_leaves_the_orientation_of_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    for kind in ("JPEG", "PNG", "WEBP"):
        assert decode(encode(RGB, kind, exif=exif)).shape == (3, 48, 64)


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


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"]
)
def test_no_picture(data):
    with pytest.raises(OSError, match=r"cannot identify|UnidentifiedImageError"):
        decode(data)


DAMAGE = """
import sys, warnings
from pathlib import Path
import numpy as np
from training.pictures import ImageFiles, decode

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
    with pytest.raises(OSError, match="truncated" if side == 10_000 else "DecompressionBombError"):
        decode(bomb(side))


def test_bombs_that_are_jpegs():
    huge = bytearray(KINDS["rgb.jpg"])
    size = huge.index(b"\xff\xc0") + 5
    huge[size : size + 4] = b"\xff\xdc" * 2  # 65,500 x 65,500 pixels: 12.9 GB
    with pytest.raises(OSError, match="DecompressionBombError"):
        decode(bytes(huge))


def test_lists_pictures_only(tmp_path):
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
    files = open_pictures(str(tmp_path))
    (tmp_path / "a.jpg").unlink()
    for index in range(2):
        with pytest.raises(OSError, match="No such file"):
            files.read(index)


def test_nothing_to_read(tmp_path):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "file.tar").write_bytes(b"")
    for name in ("missing", "file.tar", "missing/inner"):
        with pytest.raises(ValueError, match=rf"there is no folder \S*{name}: give --data a folder of pictures$"):
            open_pictures(str(tmp_path / name))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("")
    for name in ("empty", "text"):
        with pytest.raises(ValueError, match=rf"{name} holds no .jpeg, .jpg, .png, .webp file, at any depth: give"):
            open_pictures(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"there is no file .*missing.parquet: give --data"):
        open_pictures(str(tmp_path / "missing.parquet"))


def test_a_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(b"")
    assert len(open_pictures("~")) == 1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keep what ``datasets`` converts out of the home, and the process off the network."""
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def write_table(file, images, column="image"):
    file.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict({column: images, "label": list(range(len(images)))})
    table.to_parquet(file)


def embedded(*values, path=None):
    return [{"bytes": encode(filled(value), "PNG"), "path": path} for value in values]


def test_parquet_with_bytes(cache):
    write_table(cache / "some.parquet", [*embedded(10, path="x/ten.png"), *embedded(20)])
    table = open_pictures(str(cache / "some.parquet"), split="validation")  # a file is what it is
    assert [value_of(table, i) for i in range(len(table))] == [10, 20]
    assert [table.name(i) for i in range(2)] == ["row 0 (x/ten.png)", "row 1"]


def test_parquet_with_paths(cache):
    filled(30).save(cache / "thirty.png")
    paths = [str(cache / "thirty.png"), str(cache / "gone.png"), None]
    write_table(cache / "t" / "paths.parquet", [{"bytes": None, "path": path} for path in paths], "picture")
    write_table(cache / "t" / "strings.parquet", paths, "picture")
    for file in ("paths", "strings"):
        table = open_pictures(str(cache / "t" / f"{file}.parquet"), column="picture")
        assert (len(table), value_of(table, 0)) == (3, 30)
        assert [table.name(i) for i in range(3)] == [f"row 0 ({paths[0]})", f"row 1 ({paths[1]})", "row 2"]
        for index, reason in ((1, "No such file"), (2, "row 2 is empty")):
            with pytest.raises(OSError, match=reason):
                table.read(index)


SPLITS = {
    "names": {"train-0-of-2.parquet": 1, "train-1-of-2.parquet": 2, "validation-0-of-1.parquet": 3},
    "folders": {"train/0000.parquet": 1, "train/0001.parquet": 2, "val/0000.parquet": 3},
    "deeper": {"data/train/a.parquet": 1, "data/train/b.parquet": 2, "data/valid/a.parquet": 3},
    "one of them": {"train.parquet": 1, "train_2.parquet": 2, "validation.parquet": 3, "extra.parquet": 4},
    "none": {"data-00000-of-00002.parquet": 1, "sub/data-00001-of-00002.parquet": 2},
}


@pytest.mark.parametrize("layout", SPLITS)
def test_parquet_splits(cache, layout):
    for name, value in SPLITS[layout].items():
        write_table(cache / "tables" / name, embedded(value))

    def values(split):
        table = open_pictures(str(cache / "tables"), split)
        return sorted(value_of(table, i) for i in range(len(table)))

    assert values("train") == [1, 2]
    assert values("train[:1]") == [1]
    with pytest.raises(
        ValueError, match=r"tables, split 'test', could not be loaded: .* Should be one of \['train'"
    ):
        values("test")
    if layout != "none":
        assert values("validation") == [3]
        assert values("train+validation") == [1, 2, 3]


def test_parquet_of_other_splits_only(cache):
    for name in ("validation-0.parquet", "test-0.parquet"):
        write_table(cache / "tables" / name, embedded(1))
    with pytest.raises(ValueError, match=r'Unknown split "train". Should be one of \[\'validation\', \'test\'\]'):
        open_pictures(str(cache / "tables"))


def test_parquet_without_images(cache):
    write_table(cache / "t.parquet", embedded(1))
    with pytest.raises(ValueError, match=r"no column 'img': give --image-column one of image, label$"):
        open_pictures(str(cache / "t.parquet"), column="img")
    with pytest.raises(ValueError, match="column 'label' holds no images: give --image-column one of"):
        open_pictures(str(cache / "t.parquet"), column="label")
    with pytest.raises(ValueError, match="the data set has no rows"):
        ImageTable(datasets.Dataset.from_dict({"image": []}), "image")


def test_damaged_parquet(cache):
    (cache / "t.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match=r"t.parquet, split 'train', could not be loaded: .*[Pp]arquet"):
        open_pictures(str(cache / "t.parquet"))


def test_hub_name_that_does_not_exist(cache):
    with pytest.raises(ValueError, match=r"^hf:no-one/nothing, split 'dev', could not be loaded: .*\S$"):
        open_pictures("hf:no-one/nothing", "dev")


def test_reasons_of_many_lines_become_one(cache):
    (cache / "README.md").write_text(
        "---\nconfigs:\n- {config_name: a, data_files: a.parquet}\n- {config_name: b, data_files: b.parquet}\n---\n"
    )
    for name in "ab":
        write_table(cache / f"{name}.parquet", embedded(1))
    with pytest.raises(ValueError, match=r"Config name is missing\. Please pick one .*'b'") as raised:
        open_pictures(f"hf:{cache}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("data", ["hf:{}", "hf:{}/script.py", "{}"])
def test_scripts_are_not_executed(cache, data):
    folder = cache / "script"
    folder.mkdir()
    ran = cache / "ran"
    (folder / "script.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    with pytest.raises(ValueError, match=r"scripts are no longer supported|holds no"):
        open_pictures(data.format(folder))
    assert not ran.exists()

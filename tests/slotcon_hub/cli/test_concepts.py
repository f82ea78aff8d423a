"""``slotcon-hub concepts`` and ``slotcon-hub segment`` as people type them."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import timm
from image_files import KINDS
from PIL import Image
from prototype_models import SIDE, exported, paint, painted

from slotcon_hub.cli import main
from slotcon_hub.concepts.gallery import ranges
from slotcon_hub.models.saving import save_model

PROTOTYPES = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(exported(tmp_path_factory.mktemp("export") / "prototypes", prototypes=PROTOTYPES))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("images"), 7)


@pytest.fixture(autouse=True)
def here(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def concepts(model, images, *options):
    return main(["concepts", "--model", model, "--images", str(images), "--device", "cpu", "--top", "2", *options])


def segment(model, *options):
    return main(["segment", "--model", model, "--device", "cpu", *map(str, options)])


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def numbers(path):
    return json.loads(Path(path).read_text())


class Links(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.targets, self.names = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.targets += [given[key] for key in ("src", "href") if key in given]
        self.names.add(given.get("id"))


def test_concepts(model, images, capsys):
    assert concepts(model, images, "--top", "3", "--per-page", "2") == 0
    found = numbers("concepts/concepts.json")
    facts = {"model": model, "segment": "group", "top": 3, "resize": 73, "crop": SIDE, "interpolation": "bicubic"}
    facts |= {"precision": "float32", "device": "cpu", "prototypes": PROTOTYPES, "images": 7, "unreadable": []}
    assert facts.items() <= found.items()
    assert [row["prototype"] for row in found["concepts"]] == list(range(PROTOTYPES))
    assert sum(row["share"] for row in found["concepts"]) == pytest.approx(1, abs=1e-5)
    assert found["unused"] == [row["prototype"] for row in found["concepts"] if not row["segments"]]
    assert PROTOTYPES - 1 in found["unused"]
    for row in found["concepts"]:
        assert len(row["nearest"]) == min(row["segments"], 3)
        for near in row["nearest"]:
            assert (images / near["file"]).is_file()
            x0, y0, x1, y1 = near["box"]
            assert 0 <= x0 < x1 <= SIDE
            assert 0 <= y0 < y1 <= SIDE
            assert 0 < near["pixels"] <= (x1 - x0) * (y1 - y0)
    assert any(near["file"].startswith("deeper/") for row in found["concepts"] for near in row["nearest"])

    used = PROTOTYPES - len(found["unused"])
    pages = [f"page-{n:03}.png" for n in range(-(-used // 2))]
    assert sorted(files("concepts")) == ["concepts.json", "index.html", *pages]
    page = Path("concepts/index.html").read_text()
    links = Links(page)
    assert [t for t in links.targets if t.endswith(".png")] == pages
    assert all((Path("concepts") / t).is_file() or t[1:] in links.names for t in links.targets)
    assert f"Unused, {len(found['unused'])} of them: {ranges(found['unused'])}." in page
    with Image.open("concepts/page-000.png") as drawn:
        assert drawn.mode == "RGB"

    out, err = capsys.readouterr()
    order = sorted(range(PROTOTYPES), key=lambda k: (-found["concepts"][k]["segments"], k))
    table = [line.split() for line in out.splitlines()[:6]]
    assert table[0] == ["PROTOTYPE", "SEGMENTS", "PIXELS", "MOST", "SIMILAR"]
    assert [int(row[0]) for row in table[1:]] == order[:5]
    assert f"{used} of {PROTOTYPES} prototypes are used in 7 images; unused: {ranges(found['unused'])}\n" in out
    assert re.search(
        r"decoding \d.*, network \d.*, segments \d.*, drawing \d.*: \d+\.\d\d x decoding and network", out
    )
    assert out.endswith("concepts/index.html to browse them\n")
    assert "images: 100%" in err


@pytest.mark.parametrize(
    ("numbers", "told"),
    [([], ""), ([4], "4"), ([0, 1], "0-1"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"), (range(256), "0-255")],
)
def test_ranges(numbers, told):
    assert ranges(numbers) == told


def test_concepts_are_the_same_each_time(model, images):
    outputs = []
    for name, options in {"a": [], "b": [], "c": ["--workers", "2"]}.items():
        assert concepts(model, images, "--output", name, "--batch-size", "3", *options) == 0
        outputs.append(files(name))
    assert outputs[0] == outputs[1] == outputs[2]


def test_processes_share_the_images_and_find_the_same(model, images, tmp_path):
    shutil.copytree(images, "images")
    for name in ("00a.jpg", "zz.jpg"):  # one for each process
        Path("images", name).write_bytes(b"no image")
    assert concepts(model, "images", "--output", "one", "--batch-size", "3") == 0
    options = ["--model", model, "--images", "images", "--device", "cpu", "--top", "2", "--batch-size", "3"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = Path(sys.executable).with_name("slotcon-hub")
    done = subprocess.run(
        [*launch, command, "concepts", *options, "--output", "two"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("two/index.html to browse them") == 1
    assert done.stderr.count("skipped, since it cannot be read") == 2
    assert files("one") == files("two")
    assert numbers("two/concepts.json")["unreadable"] == ["00a.jpg", "zz.jpg"]


def test_concepts_of_whole_images(model, images):
    assert concepts(model, images, "--segment", "image") == 0
    found = numbers("concepts/concepts.json")
    assert sum(row["segments"] for row in found["concepts"]) == 7
    assert {tuple(near["box"]) for row in found["concepts"] for near in row["nearest"]} == {(0, 0, SIDE, SIDE)}
    assert " images" in Path("concepts/index.html").read_text()


def test_names_are_escaped(model, tmp_path):
    paint(tmp_path / "a & b", 2)
    assert concepts(model, tmp_path / "a & b") == 0
    (tmp_path / "a & b" / "01.png").rename(tmp_path / "a & b" / "<i>.png")
    assert concepts(model, tmp_path / "a & b", "--force") == 0
    page = Path("concepts/index.html").read_text()
    assert "a &amp; b" in page
    assert "&lt;i&gt;.png" in page
    assert "<i>" not in page


def test_concepts_in_bfloat16(model, images):
    assert concepts(model, images, "--precision", "bfloat16") == 0
    assert numbers("concepts/concepts.json")["precision"] == "bfloat16"


def test_concepts_replace_concepts_alone(model, images, tmp_path, capsys):
    assert concepts(model, images, "--per-page", "1") == 0
    before = files("concepts")
    assert concepts(model, images) == 1
    assert "concepts has concepts already: add --force to replace them" in capsys.readouterr().err
    assert files("concepts") == before
    assert concepts(model, images, "--force") == 0
    assert 2 < len(files("concepts")) < len(before)  # no page of the first is left
    (tmp_path / "other").mkdir()
    assert concepts(model, images, "--output", "other") == 0
    (tmp_path / "other" / "concepts.json").rename(tmp_path / "other" / "mine.json")
    capsys.readouterr()
    assert concepts(model, images, "--output", "other", "--force") == 1
    assert "other has other files than concepts" in capsys.readouterr().err


def test_images_are_neither_replaced_nor_mixed_with_results(model, images, capsys):
    for output in (images, images / "concepts", images.parent):
        before = sorted(images.rglob("*"))
        assert concepts(model, images, "--output", str(output), "--force") == 1
        assert capsys.readouterr().err.count("\n") == 1
        assert sorted(images.rglob("*")) == before


def test_an_error_leaves_nothing(model, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "slotcon_hub.concepts.gallery.draw_page", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    assert concepts(model, images) == 1
    assert capsys.readouterr().err.endswith("slotcon-hub: disk full\n")
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_read_are_named(model, tmp_path, capsys):
    for name, data in KINDS.items():
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(data)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    assert concepts(model, tmp_path / "images") == 0
    out, err = capsys.readouterr()
    assert re.search(r"^skipped, since it cannot be read: \S*broken\.jpg \(.*cannot identify", err, re.MULTILINE)
    assert "skipped, since they cannot be read: 1\n" in out
    found = numbers("concepts/concepts.json")
    assert (found["images"], found["unreadable"]) == (len(KINDS), ["broken.jpg"])

    for name in KINDS:
        (tmp_path / "images" / name).unlink()
    assert concepts(model, tmp_path / "images", "--output", "none") == 1
    assert "slotcon-hub: none of the 1 images can be read: give other images" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_segment(model, tmp_path, capsys):
    Image.fromarray(painted(5, 61, 83)).save("street.png")
    assert segment(model, "street.png") == 0
    assert sorted(files("segments")) == ["street-index.png", "street-overlay.png", "street-segments.json"]
    found = numbers("segments/street-segments.json")
    facts = {"model": model, "image": "street.png", "size": None, "precision": "float32", "device": "cpu"}
    assert facts.items() <= found.items()
    assert (found["width"], found["height"], found["prototypes"]) == (83, 61, PROTOTYPES)
    with Image.open("segments/street-index.png") as image:
        index = np.asarray(image)
    assert index.shape == (61, 83)
    segments = found["segments"]
    assert len(segments) > 1
    assert {row["prototype"] for row in segments} == set(index.flatten().tolist())
    for row in segments:
        ys, xs = np.nonzero(index == row["prototype"])
        assert row["pixels"] == len(ys)
        assert row["share"] == pytest.approx(len(ys) / 61 / 83, abs=1e-6)
        assert row["box"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert -1 <= row["similarity"] <= 1
    with Image.open("segments/street-overlay.png") as overlay:
        assert (overlay.mode, overlay.size) == ("RGB", (83, 61))
    out = capsys.readouterr().out
    largest = f"prototype {segments[0]['prototype']}, {segments[0]['share']:.0%}"
    assert out.splitlines()[1].split(None, 5) == ["street.png", "83", "x", "61", str(len(segments)), largest]
    assert re.search(r"network \d.*, segments \d.*, drawing \d.*: \d+\.\d\d x the network alone", out)


def test_segment_with_a_model_of_one_size(tmp_path, capsys):
    args = {"backbone": "test_vit_relpos", "num_classes": 5, "hidden_dim": 8, "out_dim": 4}
    save_model(timm.create_model("slotcon_proto", **args), tmp_path / "vit", model_args=args)
    Image.fromarray(painted(5, 61, 83)).save("street.png")
    told = f"{tmp_path / 'vit'} takes images of 160 x 160 pixels only"
    assert segment(str(tmp_path / "vit"), "street.png", "--size", "64") == 1
    assert capsys.readouterr().err == f"slotcon-hub: {told}: leave out --size 64\n"
    assert not Path("segments").exists()
    assert segment(str(tmp_path / "vit"), "street.png") == 0
    assert f"{told}: all are resized to that" in capsys.readouterr().out.splitlines()
    found = numbers("segments/street-segments.json")
    assert (found["width"], found["height"], found["resized_to"]) == (83, 61, [160, 160])


def test_segment_with_many_prototypes(tmp_path):
    many = exported(tmp_path / "many", prototypes=300)
    Image.fromarray(painted(5)).save("a.png")
    assert segment(str(many), "a.png") == 0
    with Image.open("segments/a-index.png") as image:
        assert image.mode == "I;16"
        used = set(np.asarray(image).flatten().tolist())
    assert used == {row["prototype"] for row in numbers("segments/a-segments.json")["segments"]}


def test_names_that_are_no_utf8_are_escaped(model, capsys):
    folder, name = os.fsencode("in"), b"caf\xe9.jpg"
    os.mkdir(folder)
    for seed, file in enumerate((name, b"a.jpg", b"b.jpg", b"bad\xe9.jpg")):
        Image.fromarray(painted(seed)).save(encoded := BytesIO(), "JPEG")
        Path(os.fsdecode(os.path.join(folder, file))).write_bytes(
            b"" if file.startswith(b"bad") else encoded.getvalue()
        )
    assert concepts(model, "in") == 0
    assert r"in/bad\xe9.jpg (cannot identify" in capsys.readouterr().err
    told = numbers("concepts/concepts.json")
    assert {found["file"] for row in told["concepts"] for found in row["nearest"]} >= {r"caf\xe9.jpg"}
    assert told["unreadable"] == [r"bad\xe9.jpg"]
    assert r"caf\xe9.jpg" in Path("concepts/index.html").read_text("utf-8")
    assert segment(model, os.fsdecode(os.path.join(folder, name))) == 0
    assert r"caf\xe9.jpg" in capsys.readouterr().out
    (file,) = Path("segments").glob("*.json")
    assert numbers(file)["image"] == r"in/caf\xe9.jpg"


def test_segment_of_every_kind_of_image(model, tmp_path):
    (tmp_path / "in").mkdir()
    for name, data in KINDS.items():
        (tmp_path / "in" / name).write_bytes(data)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    Image.fromarray(painted(1, 40, 60)).save(tmp_path / "in" / "turned.jpg", exif=exif)
    Image.fromarray(painted(1, 1, 1)).save(tmp_path / "in" / "dot.png")
    paths = sorted((tmp_path / "in").iterdir())
    assert segment(model, *paths) == 0
    found = {Path(f["image"]).name: f for f in map(numbers, Path("segments").glob("*.json"))}
    assert {path.name for path in paths} == set(found)
    sizes = {name: (f["width"], f["height"]) for name, f in found.items()}
    assert sizes.pop("turned.jpg") == (40, 60)
    assert sizes.pop("dot.png") == (1, 1)
    assert set(sizes.values()) == {(64, 48)}


def test_segment_shrinks_for_the_network_alone(model):
    Image.fromarray(painted(5, 200, 300)).save("a.png")
    assert segment(model, "a.png", "--output", "own") == 0
    assert segment(model, "a.png", "--output", "shrunk", "--size", "64", "--precision", "bfloat16") == 0
    own, shrunk = (numbers(f"{folder}/a-segments.json") for folder in ("own", "shrunk"))
    assert (shrunk["size"], shrunk["precision"]) == (64, "bfloat16")
    assert (own["width"], own["height"]) == (shrunk["width"], shrunk["height"]) == (300, 200)
    assert own["segments"] != shrunk["segments"]


def test_images_of_one_name(model, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(painted(ord(folder))).save(tmp_path / folder / "x.png")
    Image.fromarray(painted(3)).save("X.jpg")
    Image.fromarray(painted(4)).save("x-2.png")
    assert segment(model, "a/x.png", "b/x.png", "X.jpg", "x-2.png") == 0
    named = {
        path.name[: -len("-segments.json")]: numbers(path)["image"] for path in Path("segments").glob("*.json")
    }
    assert named == {"x": "a/x.png", "x-2": "b/x.png", "X-3": "X.jpg", "x-2-2": "x-2.png"}


def test_segment_overwrites_when_told(model, capsys):
    Image.fromarray(painted(5)).save("a.png")
    assert segment(model, "a.png") == 0
    Path("segments/mine.txt").write_text("kept")
    before = files("segments")
    Image.fromarray(painted(6)).save("a.png")
    assert segment(model, "a.png") == 1
    assert "a-overlay.png exists already: add --force to overwrite it" in capsys.readouterr().err
    assert files("segments") == before
    assert segment(model, "a.png", "--force") == 0
    after = files("segments")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] == after[name]} == {"mine.txt"}


def test_segment_skips_what_cannot_be_read(model, capsys):
    Image.fromarray(painted(5)).save("a.png")
    Path("b.png").write_bytes(b"no image")
    assert segment(model, "b.png", "a.png", "gone.png") == 0
    out, err = capsys.readouterr()
    assert re.findall(r"^skipped, since it cannot be read: (\S+)", err, re.MULTILINE) == ["b.png", "gone.png"]
    assert "a.png" in out
    assert segment(model, "b.png", "gone.png") == 1
    assert "slotcon-hub: none of the 2 images can be read: give other images" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["concepts", "--images", "in"], ["segment", "in/0.png"]])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "slotcon_r50.coco_800ep",
            "is a backbone without prototypes: use a *_proto model, slotcon_r50_proto.coco_800ep",
        ),
        ("nowhere", "there are no weights 'nowhere'"),
    ],
)
def test_errors_are_one_sentence(tmp_path, capsys, command, name, said):
    Path("in").mkdir()
    Image.fromarray(painted(0)).save("in/0.png")
    assert main([*command, "--model", name]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_folders_and_files_in_the_wrong_place(model, images, capsys):
    Path("file").write_text("")
    assert concepts(model, "missing") == 1
    assert "there is no folder missing: name a folder of images" in capsys.readouterr().err
    for call in (
        lambda: concepts(model, images, "--output", "file"),
        lambda: segment(model, "a", "--output", "file"),
    ):
        assert call() == 1
        assert "file is a file, but must be a folder: choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["concepts", "--model", "m"],
        ["concepts", "--images", "in"],
        ["concepts", "--model", "m", "--images", "in", "--top", "0"],
        ["concepts", "--model", "m", "--images", "in", "--per-page", "many"],
        ["concepts", "--model", "m", "--images", "in", "--workers", "-1"],
        ["concepts", "--model", "m", "--images", "in", "--segment", "cell"],
        ["segment", "--model", "m"],
        ["segment", "--model", "m", "a.png", "--size", "0"],
        ["segment", "--model", "m", "a.png", "--device", "toaster"],
        ["segment", "--model", "m", "a.png", "--precision", "float16"],
    ],
)
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert f"usage: slotcon-hub {arguments[0]}" in capsys.readouterr().err


def test_a_device_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["segment", "--model", "m", "a.png", "--device", "cuda"])
    assert "there is no CUDA device: use cpu" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["concepts", "segment"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"slotcon-hub {command} --model slotcon_r50_proto.coco_800ep" in capsys.readouterr().out

"""``slotcon-hub pca`` as people type it."""

import html
import json
import os
import re
import shutil
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prototype_models import SIDE, exported, paint
from torchvision.transforms.v2.functional import resize

from slotcon_hub.cli import main
from slotcon_hub.concepts.components import fit_components
from slotcon_hub.images import decode
from slotcon_hub.models.maps import load_map


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(exported(tmp_path_factory.mktemp("export") / "prototypes"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return sorted(map(str, paint(tmp_path_factory.mktemp("images"), 3).rglob("*.png")))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pca(model, *options):
    return main(["pca", "--model", model, "--device", "cpu", "--size", str(SIDE), *map(str, options)])


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_components_of_all_images(model, images, capsys):
    assert pca(model, *images, "--groups", model) == 0
    names = [Path(path).stem for path in images]
    expected = {f"{name}-{kind}.png" for name in names for kind in ("image", "pca", "groups")}
    assert {path.name for path in Path("pca").iterdir()} == expected | {"index.html", "pca.json"}
    net, maps = load_map(model, SIDE), []
    for path in images:
        with torch.no_grad():
            maps.append(net(resize(decode(Path(path).read_bytes()), [SIDE], antialias=True)[None])[0])
    found = fit_components(maps)
    for path, name, one in zip(images, names, maps, strict=True):
        image = pixels(path)
        assert (pixels(f"pca/{name}-image.png") == image).all()
        values = (found.project(one, image.shape[:2]) * 255).permute(1, 2, 0).numpy()
        assert np.abs(pixels(f"pca/{name}-pca.png") - values).max() <= 1
        assert pixels(f"pca/{name}-groups.png").shape == image.shape
    page = Path("pca/index.html").read_text()
    assert set(re.findall(r'src="(.*?)"', page)) == {f"./{name}" for name in expected}
    assert "image, principal components, groups" in page
    facts = json.loads(Path("pca/pca.json").read_text())
    assert (facts["components of"], facts["groups of"]) == ("3 images together", model)
    assert facts["images"][0]["explained"] == [round(share, 6) for share in found.explained]
    assert capsys.readouterr().out == "open pca/index.html to see them\n"


def test_a_page_shows_files_of_any_name(model, images):
    names = ["a #1?%41", "javascript:alert(1);", os.fsdecode(b"caf\xe9")]
    for image, name in zip(images, names, strict=True):
        shutil.copy(image, f"{name}.png")
    assert pca(model, *(f"./{name}.png" for name in names)) == 0
    page = Path("pca/index.html").read_text()
    for link in [*re.findall(r'src="(.*?)"', page), *re.findall(r'href="(.*?)"', page)]:
        url = urllib.parse.urljoin("file:///", html.unescape(link))
        assert urllib.parse.urlsplit(url)[0] == "file"
        assert os.path.exists(b"pca" + urllib.parse.unquote_to_bytes(urllib.parse.urlsplit(url).path)), link


def test_components_of_each_image(model, images):
    assert pca(model, *images, "--each", "--output", "each") == 0
    assert pca(model, images[0], "--output", "one") == 0
    name = Path(images[0]).stem
    assert (pixels(f"each/{name}-pca.png") == pixels(f"one/{name}-pca.png")).all()
    explained = [one["explained"] for one in json.loads(Path("each/pca.json").read_text())["images"]]
    assert explained[0] != explained[1]
    assert "groups" not in Path("each/index.html").read_text()


def test_the_foreground_alone(model, images):
    assert pca(model, *images, "--foreground", "0.5") == 0
    black = [(pixels(f"pca/{Path(path).stem}-pca.png") == 0).all(2).mean() for path in images]
    assert all(0 < share < 1 for share in black)


def test_what_is_there_is_not_replaced(model, images, capsys):
    assert pca(model, images[0]) == 0
    assert pca(model, images[1]) == 1
    assert "pca exists already: add --force to replace it" in capsys.readouterr().err
    assert pca(model, images[1], "--force") == 0
    assert not Path(f"pca/{Path(images[0]).stem}-pca.png").exists()
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("keep")
    assert pca(model, images[0], "--output", "mine", "--force") == 1
    assert "mine contains something other than principal components" in capsys.readouterr().err


def test_errors_are_one_sentence(model, images, capsys):
    Path("bad.png").write_bytes(b"no image")
    assert pca(model, "bad.png") == 1
    assert "none of the 1 images can be read" in capsys.readouterr().err
    assert not Path("pca").exists()
    assert pca(model, "bad.png", images[0]) == 0
    assert "bad.png (cannot identify image file" in capsys.readouterr().err
    assert pca("slotcon_nope", images[0], "--force") == 1
    assert "slotcon_nope could not be loaded: there are no weights" in capsys.readouterr().err
    assert pca(model, images[0], "--force", "--groups", "slotcon_nano") == 1
    assert "slotcon_nano is a backbone without prototypes" in capsys.readouterr().err
    for wrong in ("0", "1", "x", "nan"):
        with pytest.raises(SystemExit):
            pca(model, images[0], "--foreground", wrong)
        assert f"{wrong!r} is no number between 0 and 1" in capsys.readouterr().err

"""Concepts that the page shows: found in a folder, or made once."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prototype_models import dividing_model, exported, paint

from slotcon_hub.cli import main
from slotcon_hub.concepts.drawing import draw_segment
from slotcon_hub.concepts.gallery import NUMBERS, Gallery
from slotcon_hub.concepts.inference import CenterCrop
from slotcon_hub.explore import collection
from slotcon_hub.explore.collection import EXAMPLES, Collection, find_or_make
from slotcon_hub.images import ImageFiles, decode


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTCON_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "concepts"


def pixels(url):
    data = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data))).astype(float)


def test_the_thumbnails_are_those_of_the_nearest_segments(tmp_path, cache, monkeypatch):
    model, images, written = dividing_model(40), paint(tmp_path / "images", 7), []
    monkeypatch.setattr(collection, "Gallery", lambda *given: written.append(given) or Gallery(*given))
    monkeypatch.setattr(collection, "_PER_PAGE", 2)
    found = find_or_make(model, "mine", images)
    concepts, crop = written[0][0], CenterCrop.from_model(model)
    files = ImageFiles(images)
    assert (len(found), found.images, found.model) == (40, 7, "mine")
    assert len(list(cache.glob("*/page-*.png"))) > 1
    for k in range(40):
        concept, nearest = found.concept(k), concepts.nearest(k)
        assert concept.segments == concepts.segments[k]
        assert concept.share == pytest.approx(concepts.pixels[k] / (7 * crop.side**2), abs=1e-6)
        assert [one[0] for one in concept.nearest] == [one.similarity for one in nearest]
        for (_, name, url), one in zip(concept.nearest, nearest, strict=True):
            assert str(images / name) == files.paths[one.image]
            image = crop(decode(files.read(one.image))).permute(1, 2, 0).numpy()
            right = np.asarray(draw_segment(image, one.pixel_mask(crop.side))).astype(float)
            assert abs(pixels(url) - right).mean() < 15  # of JPEG
    assert found.concept(concepts.unused()[0]).nearest == []


def test_they_are_made_once_and_again_after_a_change(tmp_path, cache):
    model, images = dividing_model(), paint(tmp_path / "images", 2)

    def made():
        find_or_make(model, "mine", images)
        return len(list(cache.iterdir()))

    assert [made(), made()] == [1, 1]
    os.utime(images / "01.png", (0, 0))
    assert made() == 2
    with torch.no_grad():
        model.prototypes.weight[0] += 1
    assert made() == 3
    (images / "01.png").unlink()
    assert made() == 4


def test_images_that_cannot_be_read_leave_nothing_in_the_cache(tmp_path, cache):
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of the 1 images in .* can be read: give other --images"):
        find_or_make(dividing_model(), "mine", tmp_path)
    assert list(cache.iterdir()) == []


def test_a_folder_of_the_command(tmp_path):
    name, images = str(exported(tmp_path / "model")), paint(tmp_path / "images", 3)
    out = tmp_path / "concepts"
    assert (
        main(["concepts", "--model", name, "--images", str(images), "--device", "cpu", "--output", str(out)]) == 0
    )
    model = dividing_model()
    assert find_or_make(model, name, out).images == 3
    with pytest.raises(ValueError, match=r"holds concepts of .*/model, not of other: give a folder of images"):
        find_or_make(model, "other", out)
    other = dividing_model()
    with torch.no_grad():
        other.prototypes.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"concepts of other weights of .*: make it again with `slotcon-hub"):
        find_or_make(other, name, out)
    numbers = json.loads((out / NUMBERS).read_text())
    (out / NUMBERS).write_text(json.dumps({k: v for k, v in numbers.items() if k != "weights"}))
    assert find_or_make(other, name, out).images == 3, "earlier versions did not write them"
    for damaged in (b"{", b"[]", json.dumps({**numbers, "per_page": None, "concepts": None}).encode()):
        (out / NUMBERS).write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"holds no whole concepts.json: make it again with `slotcon-hub concepts"
        ):
            Collection(out)


def test_the_drawn_scenes_are_those_of_the_training_package():
    from training.data.scenes import make_scene

    paths = [Path(path) for path in ImageFiles(EXAMPLES).paths]
    assert len(paths) == 16
    drawn = decode(paths[0].read_bytes()).permute(1, 2, 0).numpy().astype(float)
    assert abs(drawn - make_scene(7000)[0]).mean() < 12  # of lossy WebP

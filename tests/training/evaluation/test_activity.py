"""Slot activity against loops over images, cells and views; in one process and in two."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from slotcon_hub.concepts.inference import load_prototypes
from slotcon_hub.images import ImageFiles, decode
from training.data import color
from training.data.views import TwoViews, stack
from training.evaluation.activity import ImagesAndViews, Settings, main, measure_activity

IMAGES, PROTOTYPES = 11, 15


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        size = {4: (5, 3), 5: (700, 600)}.get(i, (70 + i, 90 - 3 * i))  # of large ones, views are read reduced
        tones = rng.integers(0, 256, (size[0] // 20 + 1, size[1] // 20 + 1, 3))
        image = tones.repeat(20, 0).repeat(20, 1)[: size[0], : size[1]] * 0.8 + rng.integers(0, 50, (*size, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:02}.png")
    return folder


def slow_activity(data: ImagesAndViews, net: torch.nn.Module) -> dict[str, list]:
    """Active prototypes of images and views, cell by cell, and the similarity of each segment."""
    mean, std = (torch.tensor(net.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    found = {"active": [], "views": [], "segments": {}}
    for index in range(len(data)):
        sample = data[index]
        images = [(sample["image"] / 255 - mean) / std]
        images += [color.apply(sample["views"][[v]], sample["color"][[v]])[0] for v in (0, 1)]
        sets = []
        for number, image in enumerate(images):
            with torch.no_grad():
                scores = net(image[None])[0].flatten(1)
            cells: dict[int, list[float]] = {}
            for cell in range(scores.shape[1]):
                best = int(scores[:, cell].argmax())
                cells.setdefault(best, []).append(float(scores[best, cell]))
            sets.append(set(cells))
            if number == 0:
                for k, values in cells.items():
                    found["segments"].setdefault(k, []).append((-sum(values) / len(values), index))
        found["active"].append(sets[0])
        found["views"].append((sets[1], sets[2]))
    return found


def test_activity_equals_loops(prototypes, folder):
    net = load_prototypes(str(prototypes))
    data = ImagesAndViews(ImageFiles(folder), net, seed=3)
    found = measure_activity(net, data, Accelerator(cpu=True), batch_size=4, workers=0)
    slow = slow_activity(data, net)
    assert found.images == IMAGES
    assert found.usage.tolist() == [sum(k in active for active in slow["active"]) for k in range(PROTOTYPES)]
    numbers = [len(active) for active in slow["active"]]
    assert found.histogram.tolist() == [numbers.count(n) for n in range(PROTOTYPES + 1)]
    assert found.in_views == pytest.approx(np.mean([len(view) for pair in slow["views"] for view in pair]))
    assert found.pairs == pytest.approx(np.mean([len(one & other) for one, other in slow["views"]]))
    assert 0 < found.pairs < found.in_views
    for k in range(PROTOTYPES):
        nearest = [index for _, index in sorted(slow["segments"].get(k, []))][:5]
        assert found.examples[k].tolist() == nearest + [-1] * (5 - len(nearest))


def test_views_are_keyed_by_seed_and_number(prototypes, folder):
    net = load_prototypes(str(prototypes))
    first, again, other = (ImagesAndViews(ImageFiles(folder), net, seed)[2]["views"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (2, 3, 64, 64)


def test_views_are_those_of_pre_training_of_large_images_too(prototypes, folder):
    views, data = TwoViews(64), (folder / "05.png").read_bytes()
    draws = {seed: views.draw(700, 600, np.random.default_rng([seed, 5])) for seed in range(9)}
    seed = next(seed for seed, drawn in draws.items() if drawn.reduction > 1)
    expected = stack([views.cut(decode(data, reduction=draws[seed].reduction), draws[seed])])
    found = ImagesAndViews(ImageFiles(folder), load_prototypes(str(prototypes)), seed)[5]
    assert torch.equal(found["views"], expected["views"][:, 0])
    assert torch.equal(found["color"], expected["color"][:, 0])


def settings(model: Path, folder: Path, **others: object) -> Settings:
    return dataclasses.replace(Settings(str(model), str(folder), batch_size=3, workers=0), **others)


def test_the_numbers_that_are_reported(prototypes, folder, here, tmp_path, capsys):
    here(main, settings(prototypes, folder, output=tmp_path / "found.json", figures=tmp_path / "figures"))
    found = json.loads((tmp_path / "found.json").read_text())
    usage = found["usage"]
    live = sorted(count for count in usage if count)
    assert len(live) > 7
    assert found["images"] == sum(found["images_by_active_slots"]) == IMAGES
    assert found["dead_slots"] == PROTOTYPES - len(live)
    assert found["active_slots"] == pytest.approx(sum(usage) / IMAGES)
    assert [usage[k] for k in found["most_active"]] == live[::-1][:5]
    assert [usage[k] for k in found["least_active"]] == live[: min(5, len(live) - 5)]
    assert not set(found["most_active"]) & set(found["least_active"])
    assert found["excluded_terms"] == pytest.approx(PROTOTYPES - found["positive_pairs"])
    negatives = 512 * (PROTOTYPES - found["active_slots_of_a_view"])
    assert found["excluded_negatives_in_a_batch_of_512"] == pytest.approx(negatives)
    assert found["protocol"]["cells"] == [4, 4]
    assert f"{found['positive_pairs']:.2f}" in capsys.readouterr().out
    for name in ("activity.png", "segments.png"):
        with Image.open(tmp_path / "figures" / name) as image:
            assert min(image.size) > 200


def test_half_precision_changes_little(prototypes, folder, here, tmp_path):
    found = []
    for precision in ("no", "bf16"):
        here(main, settings(prototypes, folder, output=tmp_path / "found.json", mixed_precision=precision))
        found.append(json.loads((tmp_path / "found.json").read_text()))
    assert found[0]["active_slots"] == pytest.approx(found[1]["active_slots"], abs=0.5)
    assert found[1]["settings"]["mixed_precision"] == "bf16"


def test_a_strip_is_cut_before_it_is_resized(prototypes, tmp_path, monkeypatch):
    Image.new("RGB", (30_000, 1)).save(tmp_path / "strip.png")
    data = ImagesAndViews(ImageFiles(tmp_path), load_prototypes(str(prototypes)), 0)
    sizes, cut = [], data.cut
    monkeypatch.setattr(data, "cut", lambda image: sizes.append(tuple(image.shape)) or cut(image))
    assert data[0]["image"].shape == data.whole(0).shape
    assert sizes == [(3, 1, 4)] * 2


def test_a_damaged_image_is_named(prototypes, here, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.jpg cannot be read: cannot identify image file"):
        here(main, settings(prototypes, tmp_path))


def test_a_table_and_its_options(prototypes, folder, here, tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"photo": [str(folder / f"{i:02}.png") for i in range(3)]})
    (tmp_path / "validation").mkdir()
    table.cast_column("photo", datasets.Image()).to_parquet(tmp_path / "validation" / "validation-0.parquet")
    options = {"split": "validation", "image_column": "photo", "output": tmp_path / "found.json"}
    here(main, settings(prototypes, tmp_path, **options))
    assert json.loads((tmp_path / "found.json").read_text())["images"] == 3

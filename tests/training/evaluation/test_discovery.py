"""Object discovery against pixels one by one, on files in the formats of COCO and of VOC."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from launched import launched
from PIL import Image

from slotcon_hub.concepts.inference import load_prototypes
from slotcon_hub.models.maps import load_map
from training.data.objects import CocoObjects, VocObjects
from training.evaluation import discovery
from training.evaluation.discovery import Discovery, best_jaccards, summarize

SIZE = 64


def slow_jaccards(groups: torch.Tensor, masks: torch.Tensor, void: torch.Tensor) -> list[float]:
    pixels = [(y, x) for y in range(len(groups)) for x in range(groups.shape[1]) if not void[y, x]]
    found = []
    for mask in masks:
        mine = {at for at in pixels if mask[at]}
        ious = []
        for k in groups.unique().tolist():
            group = {at for at in pixels if groups[at] == k}
            ious.append(len(mine & group) / len(mine | group))
        found.append(max(ious))
    return found


def test_the_best_group_of_each_object():
    groups, void = torch.randint(0, 5, (12, 12)) * 3, torch.rand(12, 12) < 0.2
    masks = torch.rand(4, 12, 12) < torch.tensor([0.1, 0.5, 0.9, 0.3])[:, None, None]  # they overlap
    masks[3] = groups == 6
    found = best_jaccards(groups, masks, void)
    assert found == pytest.approx(slow_jaccards(groups, masks, void))
    assert found[3] == 1
    assert best_jaccards(groups, masks[:0], void) == []


def test_means_of_objects_and_of_classes():
    found = summarize([(0, 0.2), (2, 0.4), (0, 0.6), (0, 0.4)], ("a", "b", "c"))
    assert (found["objects"], found["by_object"], found["by_class"]) == (4, 0.4, 0.4)
    assert summarize([(0, 0.2), (0, 0.4), (2, 0.9)], ("a", "b", "c"))["by_class"] == pytest.approx(0.6)
    assert [one["objects"] for one in found["per_class"]] == [3, 0, 1]
    assert np.isnan(found["per_class"][1]["jaccard"])


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """Seven images of rectangles, of which one is a crowd and one lies outside of the crop; one image has none."""
    folder = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(7):
        height, width = 64 + 3 * i, 128
        images.append({"id": 10 - i, "file_name": f"{i}.png", "height": height, "width": width})
        pixels = rng.integers(0, 80, (height, width, 3))
        boxes = [] if i == 3 else [(40, 5, 30, 40), (60, 10, 20, 20), (0, 0, 4, 4), (35, 30, 40, 30)]
        for j, (x, y, w, h) in enumerate(boxes):
            pixels[y : y + h, x : x + w, j % 3] += 150
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            one = {"image_id": 10 - i, "bbox": [x, y, w, h], "segmentation": [polygon], "iscrowd": int(j == 3)}
            annotations.append({**one, "id": len(annotations) + 1, "category_id": 5 + 2 * (j % 2), "area": w * h})
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    categories = [{"id": 5, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "none"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "objects.json").write_text(json.dumps(content))
    return folder


def settings(model: Path, coco: Path, **others: object) -> Discovery:
    wanted = Discovery(models=(str(model),), data=coco, objects=coco / "objects.json", size=SIZE, workers=0)
    return dataclasses.replace(wanted, **{"batch_size": 2, "clusters": 6, **others})


def found_by(here, chosen: Discovery) -> dict:
    here(discovery.main, chosen)
    return json.loads(chosen.output.read_text())


def test_objects_are_what_is_left_in_the_square(coco):
    images = CocoObjects(coco, coco / "objects.json", SIZE)
    assert images.classes == ("cat", "dog", "none")
    assert [len(one.labels) for one in images] == [2, 2, 2, 0, 2, 2, 2]
    last = images[6]  # of the lowest id's place in the order: the first image, of 64 x 128 pixels
    assert last.masks.shape == (2, SIZE, SIZE)
    expected = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    expected[5:45, 8:38] = True  # 32 pixels are cut off at the left
    assert torch.equal(last.masks[0], expected)
    assert last.labels == [0, 1]


def test_prototypes_discover_what_loops_find(prototypes, coco, here, tmp_path, capsys):
    found = found_by(here, settings(prototypes, coco, output=tmp_path / "found.json"))
    model = load_prototypes(str(prototypes))
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    ious: dict[int, list[float]] = {0: [], 1: []}
    for one in CocoObjects(coco, coco / "objects.json", SIZE):
        with torch.no_grad():
            scores = model(((one.image / 255 - mean) / std)[None])
        groups = F.interpolate(scores, (SIZE, SIZE), mode="bilinear", align_corners=False)[0].argmax(0)
        for label, iou in zip(one.labels, slow_jaccards(groups, one.masks, one.void), strict=True):
            ious[label].append(iou)
    numbers = found["results"][str(prototypes)]
    assert numbers["objects"] == 12
    assert numbers["by_object"] == pytest.approx(np.mean(ious[0] + ious[1]), abs=0.005)
    assert numbers["by_class"] == pytest.approx(np.mean([np.mean(ious[0]), np.mean(ious[1])]), abs=0.005)
    assert [one["name"] for one in numbers["per_class"]] == ["cat", "dog", "none"]
    assert numbers["per_class"][2] == {"name": "none", "objects": 0, "jaccard": None}
    assert found["protocol"]["features"][str(prototypes)]["stride"] == 16
    assert f"{100 * numbers['by_class']:.2f}" in capsys.readouterr().out


def test_clusters_of_any_model(backbone, coco, here, tmp_path, monkeypatch):
    drawn, kmeans = [], discovery.kmeans
    monkeypatch.setattr(discovery, "kmeans", lambda *a: drawn.append(kmeans(*a)) or drawn[-1])
    chosen = settings(backbone, coco, groups="clusters", output=tmp_path / "found.json")
    numbers = found_by(here, chosen)["results"][str(backbone)]
    model, ious = load_map(str(backbone), SIZE), []
    for one in CocoObjects(coco, coco / "objects.json", SIZE):
        with torch.no_grad():
            cells = F.normalize(model(one.image[None]), dim=1)
        pixels = F.interpolate(cells, (SIZE, SIZE), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        groups = (pixels[:, :, None] - drawn[0]).square().sum(3).argmin(2)
        ious += slow_jaccards(groups, one.masks, one.void)
    assert (numbers["groups"], numbers["objects"]) == (6, 12)
    assert numbers["by_object"] == pytest.approx(np.mean(ious), abs=0.005)


@pytest.fixture
def voc(tmp_path) -> Path:
    objects, kinds = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    objects[8:32, 8:32], objects[32:56, 16:48], objects[8:56, 6:8] = 1, 4, 255
    kinds[8:32, 8:32], kinds[32:56, 16:48], kinds[8:56, 6:8] = 15, 2, 255
    for name in ("one", "two"):
        for kind, values in (("SegmentationObject", objects), ("SegmentationClass", kinds)):
            (tmp_path / kind).mkdir(exist_ok=True)
            image = Image.fromarray(values)
            image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
            image.save(tmp_path / kind / f"{name}.png")
        (tmp_path / "JPEGImages").mkdir(exist_ok=True)
        Image.fromarray(np.stack([objects * 40] * 3, axis=2)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "val.txt").write_text("two\n")
    return tmp_path


def test_voc_has_numbered_objects_and_void(voc, prototypes, here):
    (one,) = VocObjects(voc / "JPEGImages", voc / "SegmentationObject", ["two"], SIZE)
    assert one.labels == [15, 2]
    assert [int(mask.sum()) for mask in one.masks] == [24 * 24, 24 * 32]
    assert int(one.void.sum()) == 96
    paths = {"data": voc / "JPEGImages", "objects": voc / "SegmentationObject", "output": voc / "found.json"}
    found = found_by(here, settings(prototypes, voc, names=voc / "val.txt", **paths))
    assert found["protocol"]["images"] == 1
    assert [one["objects"] for one in found["results"][str(prototypes)]["per_class"]] == [0, 0, 1, *[0] * 12, 1]
    (voc / "JPEGImages" / "one.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 files of 2 images are missing, the first is .*one\.jpg: add them"):
        here(discovery.main, settings(prototypes, voc, **paths))
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(voc / "SegmentationClass" / "two.png")
    with pytest.raises(ValueError, match=r"two\.png has no class for object 1 of its image"):
        here(discovery.main, settings(prototypes, voc, names=voc / "val.txt", **paths))


@pytest.mark.parametrize("groups", ["prototypes", "clusters"])
def test_two_processes_find_the_same(prototypes, coco, tmp_path, groups):
    options = ["--models", prototypes, "--data", coco, "--objects", coco / "objects.json", "--groups", groups]
    options += ["--size", SIZE, "--batch-size", 2, "--workers", 0, "--clusters", 5, "--baseline", "--output"]
    results = []
    for processes in (1, 2):
        file = tmp_path / f"{processes}.json"
        words = ["training.evaluation.discovery", *options, file]
        assert launched(tmp_path / f"of {processes}", words, processes=processes).count("discovery on") == 1
        results.append(json.loads(file.read_text())["results"])
    assert results[0] == results[1]
    assert set(results[0]) == {str(prototypes), f"{prototypes}, random"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"objects": Path("/nowhere.json")}, "/nowhere.json cannot be read as JSON"),
        ({"objects": Path("/tmp")}, "there is no folder /SegmentationClass: VOC has it beside SegmentationObject"),
        ({"names": Path("/tmp/val.txt")}, "--names is only for VOC's folders: leave it out"),
        ({"data": Path("/nowhere")}, r"7 of the 7 images of .*objects\.json are missing"),
        ({"models": ("resnet10t",)}, "resnet10t is a backbone without prototypes"),
        ({"groups": "clusters", "clusters": 500}, "500 clusters of 112 cells"),
        ({"clusters": 0}, "--clusters 0: give at least 1"),
        ({"cells": 0}, "--cells 0: give at least 1"),
    ],
)
def test_errors_are_one_sentence(prototypes, coco, here, change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        here(discovery.main, settings(prototypes, coco, **change))
    assert "\n" not in str(error.value)

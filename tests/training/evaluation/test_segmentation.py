"""Segmentation by prototypes: the equation, and the command on real files, in one process and in two."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from slotcon_hub.concepts.inference import load_prototypes
from slotcon_hub.models.saving import save_model
from slotcon_hub.models.sizes import resize_to_model
from training.data import scenes
from training.data.masks import LabeledImages
from training.evaluation.benchmarks import coco_stuff_classes, curated
from training.evaluation.segmentation import Settings, evaluate, main, segment

SIZES = [(40, 50), (40, 50), (33, 65), (1, 1), (5, 3), (64, 41), (40, 50)]
CLASSES, PROTOTYPES = 6, 15


class Columns(nn.Module):
    """Scores B x 2 x 1 x 2: the left half of an image is group 0, the right half group 1."""

    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]))

    def forward(self, x):
        assert x.min() >= -1
        assert x.max() <= 1
        return self.weight.expand(len(x), -1, -1, -1)


def test_segment_resizes_the_scores():
    groups = segment(Columns(), torch.randint(0, 256, (2, 3, 5, 8), dtype=torch.uint8))
    assert groups.tolist() == [[[0, 0, 0, 0, 1, 1, 1, 1]] * 5] * 2


@pytest.mark.parametrize("backbone", ["test_vit", "test_coatnet"])
def test_images_of_sizes_that_the_model_does_not_take(folder, here, tmp_path, capsys, backbone):
    args = {"backbone": backbone, "num_classes": PROTOTYPES, "hidden_dim": 8, "out_dim": 4}
    save_model(timm.create_model("slotcon_proto", **args), tmp_path / "model", model_args=args)
    here(main, settings(tmp_path / "model", folder, tmp_path / "found.json", refine=True))
    found = json.loads((tmp_path / "found.json").read_text())
    expected = slow_counts(tmp_path / "model", folder, fitted=True)
    assert np.abs(np.array(found["plain"]["confusion"]) - expected).sum() <= 2
    assert found["protocol"]["sizes"] in capsys.readouterr().out


def test_evaluate_a_folder(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i, flip in enumerate((False, False, True)):
        truth = np.repeat([[3, 3, 1, 1]], 4, axis=0).astype(np.uint8)
        Image.fromarray(truth[:, ::-1] if flip else truth).save(tmp_path / "masks" / f"{i}.png")
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images" / f"{i}.jpg")
    found = evaluate(Columns(), LabeledImages(tmp_path / "images", tmp_path / "masks"), 2, 4)
    assert found.pixel_accuracy == pytest.approx(2 / 3)
    assert found.match == [3, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of many sizes, tiny ones among them; class 4 occurs nowhere, some pixels have no class."""
    folder = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        truth = rng.choice([0, 1, 2, 3, 5, 255], size=(height // 9 + 1, width // 9 + 1))
        truth = truth.repeat(9, 0).repeat(9, 1)[:height, :width].astype(np.uint8)
        pixels = rng.integers(0, 60, (height, width, 3)) + 30 * (truth % 7)[..., None]
        for name, values in (("images", pixels), ("masks", truth)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(folder / name / f"{i}.png")
    (folder / "names.txt").write_text("".join(f"class {c}\n" for c in range(CLASSES)))
    return folder


def settings(prototypes: Path, folder: Path, output: Path | None = None, **others: object) -> Settings:
    wanted = Settings(str(prototypes), str(folder / "images"), masks=folder / "masks", batch_size=2, workers=0)
    return dataclasses.replace(wanted, output=output, **others)


def slow_counts(model: Path, folder: Path, autocast: bool = False, fitted: bool = False) -> np.ndarray:
    """The confusion matrix, image after image, of maps that timm's model gives."""
    net = load_prototypes(str(model))
    mean, std = torch.tensor(net.pretrained_cfg["mean"]), torch.tensor(net.pretrained_cfg["std"])
    total = 0
    for i in range(len(SIZES)):
        with (
            Image.open(folder / "images" / f"{i}.png") as image,
            Image.open(folder / "masks" / f"{i}.png") as mask,
        ):
            pixels, truth = torch.tensor(np.array(image)), np.array(mask)
        images = ((pixels / 255 - mean) / std).permute(2, 0, 1)[None]
        images = resize_to_model(net, images) if fitted else images
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                z = net.projector(net.forward_features(images))
            maps = F.interpolate(net.prototypes(z.float()), truth.shape, mode="bilinear", align_corners=False)
        groups = maps[0].argmax(0).numpy()
        labeled = truth != 255
        total = (
            total + sklearn.metrics.confusion_matrix(truth[labeled], groups[labeled], labels=range(PROTOTYPES)).T
        )
    return total[:, :CLASSES]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_folder_in_one_process(prototypes, folder, here, tmp_path, capsys, precision):
    output = tmp_path / "found.json"
    here(main, settings(prototypes, folder, output, mixed_precision=precision, classes=folder / "names.txt"))
    found = json.loads(output.read_text())
    expected = slow_counts(prototypes, folder, precision == "bf16")
    assert np.abs(np.array(found["plain"]["confusion"]) - expected).sum() <= 2  # pixels between two prototypes
    assert len(set(expected.argmax(1))) > 1
    assert [one["name"] for one in found["plain"]["per_class"]] == [f"class {c}" for c in range(CLASSES)]
    assert found["plain"]["per_class"][4] | {"prototype": 0} == {
        "name": "class 4",
        "pixels": 0,
        "prototype": 0,
        "iou": found["plain"]["per_class"][4]["iou"],
        "accuracy": None,
    }
    assert found["protocol"]["images"] == len(SIZES)
    assert found["protocol"]["pixels"] == "all"
    assert found["plain"]["majority_accuracy"] >= found["plain"]["pixel_accuracy"]
    assert "refined" not in found
    printed = capsys.readouterr().out
    assert f"{100 * found['plain']['miou']:.2f}" in printed
    assert "class 5" in printed


def test_refined_numbers_stand_beside_the_plain_ones(prototypes, folder, here, tmp_path, capsys):
    output, figures = tmp_path / "found.json", tmp_path / "figures"
    here(main, settings(prototypes, folder, output, refine=True, figures=figures, shown=3))
    plain, refined = (json.loads(output.read_text())[variant] for variant in ("plain", "refined"))
    assert plain["confusion"] != refined["confusion"]
    assert np.sum(plain["confusion"]) == np.sum(refined["confusion"])
    printed = capsys.readouterr().out
    assert re.search(rf"mIoU +│ +{100 * plain['miou']:.2f} +│ +{100 * refined['miou']:.2f} ", printed)
    for name in ("confusion.png", "examples.png"):
        with Image.open(figures / name) as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").resize((300, 300)).getcolors(90000)) > 50


def test_the_legend_names_groups_of_no_class(prototypes, folder, here, tmp_path, monkeypatch):
    legends = []
    monkeypatch.setattr(
        "training.evaluation.segmentation_report.draw_groups", lambda rows, target, legend: legends.append(legend)
    )
    (tmp_path / "masks").mkdir()
    for i, size in enumerate(SIZES):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    here(main, settings(prototypes, folder, masks=tmp_path / "masks", figures=tmp_path))
    assert list(legends[0]) == ["0", "no class"]


def test_without_names_the_masks_say_how_many_classes(prototypes, folder, here, tmp_path):
    here(main, settings(prototypes, folder, tmp_path / "found.json", size=24))
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["name"] for one in found["plain"]["per_class"]] == ["0", "1", "2", "3", "4", "5"]
    assert found["protocol"]["pixels"].endswith("central 24 x 24")
    assert np.sum(found["plain"]["confusion"]) <= len(SIZES) * 24 * 24


def test_coco_stuff_reports_things_stuff_and_what_is_missing(prototypes, here, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in curated("val")[1:3]:
        for place, ending, shape in (("val2017", "jpg", (40, 50, 3)), ("stuffthingmaps/val2017", "png", (40, 50))):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 182, shape).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / place / f"{name}.{ending}")
    output = tmp_path / "found.json"
    data = f"coco-stuff:{tmp_path}"
    here(main, Settings(str(prototypes), data, size=32, workers=0, output=output, figures=tmp_path / "figures"))
    found = json.loads(output.read_text())
    protocol, plain = found["protocol"], found["plain"]
    assert (protocol["images"], protocol["listed"], protocol["missing"]) == (2, 2175, 2173)
    assert protocol["first_missing"][0] == curated("val")[0]
    assert [one["name"] for one in plain["per_class"]] == list(coco_stuff_classes()[0])
    ious = [one["iou"] for one in plain["per_class"]]
    assert plain["things_miou"] == pytest.approx(np.mean([iou for iou in ious[:12] if iou is not None]))
    assert plain["stuff_miou"] == pytest.approx(np.mean([iou for iou in ious[12:] if iou is not None]))
    counts = np.array(plain["confusion"])
    assert counts.sum() == 2 * 32 * 32
    matched = [(one["prototype"], c) for c, one in enumerate(plain["per_class"]) if one["prototype"] is not None]
    hits = sum(counts[group, c] for group, c in matched if c < 12)
    assert plain["things_pixel_accuracy"] == pytest.approx(hits / counts[:, :12].sum())
    assert "majority_accuracy" not in plain  # 15 prototypes for 27 classes
    assert len(matched) == len(set(matched)) == PROTOTYPES
    assert "2 of 2,175 listed images" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "figures" / "confusion.png").is_file()


def test_the_embedded_scenes(prototypes, here, tmp_path, monkeypatch):
    few = scenes.prepare(tmp_path, train=1, val=3)
    monkeypatch.setattr(scenes, "prepare", lambda train: few)
    here(main, Settings(str(prototypes), "scenes", workers=0, output=tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["name"] for one in found["plain"]["per_class"]] == list(scenes.CLASSES)
    assert np.sum(found["plain"]["confusion"]) == 3 * 128 * 192


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "slotcon_r50"}, "slotcon_r50 is a backbone without prototypes"),
        ({"model": "slotcon_nope"}, "there are no weights 'slotcon_nope'"),
        (
            {"output": Path(__file__, "deep/found.json")},
            r"\.py is a file, so \S*found.json cannot be created in it",
        ),
        ({"figures": Path(__file__, "figures")}, "figures cannot be created in it: choose another --figures"),
        ({"output": Path("/tmp")}, r"/tmp is a folder: name a JSON file in it, --output /tmp/results\.json"),
        ({"figures": Path(__file__)}, r"test_segmentation\.py is a file: choose another --figures, a folder"),
        ({"classes": Path("/nowhere/names.txt")}, "No such file or directory: '/nowhere/names.txt'"),
        ({"masks": None}, "--masks and --data FOLDER belong together"),
        ({"size": 0}, "--size 0: give at least 1"),
        ({"batch_size": -1}, "--batch-size -1: give at least 1"),
        ({"shown": 0}, "--shown 0: give at least 1"),
    ],
)
def test_errors_are_one_sentence(prototypes, folder, here, change, sentence):
    with pytest.raises((ValueError, OSError), match=sentence) as error:
        here(main, settings(prototypes, folder, **change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["output", "figures"])
def test_a_folder_without_permission_is_refused_before_the_work(
    prototypes, folder, here, tmp_path, monkeypatch, option
):
    asked = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append((path, mode)))  # root may write anywhere
    with pytest.raises(ValueError, match=rf"no permission to write \S*x: choose another --{option}"):
        here(main, settings(prototypes, folder, **{option: tmp_path / "x"}))
    assert asked == [(tmp_path, os.W_OK)]


def test_an_error_in_a_worker_is_one_sentence_too(prototypes, folder, here, tmp_path):
    few = tmp_path / "names.txt"
    few.write_text("only\nthese\n")
    with pytest.raises(ValueError, match=r"^/.*masks/\d\.png has the unknown label \d: valid are 0 to 1") as error:
        here(main, settings(prototypes, folder, classes=few, workers=1))
    assert "\n" not in str(error.value)


def test_a_backbone_is_refused(here, folder, tmp_path):
    import timm

    from slotcon_hub.export.teacher import save_model

    save_model(timm.create_model("resnet10t", num_classes=0), tmp_path / "backbone", 32)
    with pytest.raises(ValueError, match=r"backbone holds no prototypes"):
        here(main, settings(tmp_path / "backbone", folder))


def test_masks_without_a_label_are_nothing_to_measure(prototypes, here, tmp_path):
    for name, shape in (("images", (8, 8, 3)), ("masks", (8, 8))):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full(shape, 255, np.uint8)).save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match="no pixel of the masks has a label"):
        here(main, settings(prototypes, tmp_path))

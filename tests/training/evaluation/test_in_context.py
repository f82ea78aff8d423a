"""In-context segmentation against loops over cells and pixels, and the command on real files."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import shaken

from slotcon_hub.models.saving import save_model
from training.evaluation import dense, in_context
from training.evaluation.in_context import InContext, class_shares

CLASSES, SIZE = 5, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(shaken(timm.create_model("slotcon_nano", num_classes=0), 0.05).eval(), folder, SIZE)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images and masks; class 3 is never learned from, class 4 nowhere, a mask is without any label."""
    folder = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for split, number in (("train", 7), ("val", 5)):
        for i in range(number):
            truth = rng.choice([0, 1, 2, 255], size=(8, 9)).repeat(9, 0).repeat(10, 1)
            if split == "val":
                truth[truth == 2] = 3 if i % 2 else 2
            if (split, i) == ("train", 4):
                truth[:] = 255
            pixels = rng.integers(0, 60, (72, 90, 3)) + 45 * (truth % 4)[..., None]
            pixels[:16, :16] = 0  # patches that are the same everywhere
            for name, values in (("images", pixels), ("masks", truth)):
                (folder / name / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(folder / name / split / f"{i}.png")
    (folder / "names.txt").write_text("".join(f"class {c}\n" for c in range(CLASSES)))
    return folder


def settings(model: Path, folder: Path, **others: object) -> InContext:
    wanted = InContext((str(model),), folder / "images", folder / "masks", size=SIZE, batch_size=2, workers=0)
    return dataclasses.replace(wanted, **{"memory": (14, 7 * 16), "neighbors": 4, **others})


def command(here, chosen: InContext) -> dict:
    here(lambda s: dense.evaluate("in_context", s, in_context.measure, in_context.protocol), chosen)
    return json.loads(chosen.output.read_text())


def read(folder: Path, split: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = dense._open(InContext(("x",), folder / "images", folder / "masks", size=SIZE))
    return list(images.train if split == "train" else images.test)


def slow_counts(model: Path, folder: Path, neighbors: int, temperature: float) -> np.ndarray:
    """Count pixels by predicted and true class, where all cells are remembered."""
    net = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    mean, std = (torch.tensor(net.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    memory = []
    for image, truth in read(folder, "train"):
        with torch.no_grad():
            found = F.normalize(net.forward_features(((image / 255 - mean) / std)[None])[0], dim=0)
        for y in range(4):
            for x in range(4):
                patch = truth[16 * y : 16 * y + 16, 16 * x : 16 * x + 16].flatten().tolist()
                labels = [label for label in patch if label != 255]
                if labels:
                    memory.append((found[:, y, x], [labels.count(c) / len(labels) for c in range(CLASSES)]))
    counts = np.zeros((CLASSES, CLASSES), int)
    for image, truth in read(folder, "val"):
        with torch.no_grad():
            found = F.normalize(net.forward_features(((image / 255 - mean) / std)[None])[0], dim=0)
        votes = torch.zeros(CLASSES, 4, 4)
        for y in range(4):
            for x in range(4):
                cosines = [float(found[:, y, x] @ entry) for entry, _ in memory]
                nearest = sorted(range(len(memory)), key=lambda i: -cosines[i])[:neighbors]
                weights = [math.exp(cosines[i] / temperature) for i in nearest]
                for c in range(CLASSES):
                    parts = [weight * memory[i][1][c] for weight, i in zip(weights, nearest, strict=True)]
                    votes[c, y, x] = sum(parts) / sum(weights)
        predicted = F.interpolate(votes[None], (SIZE, SIZE), mode="bilinear", align_corners=False)[0].argmax(0)
        for p, t in zip(predicted.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if t != 255:
                counts[p, t] += 1
    return counts


@pytest.mark.parametrize(("neighbors", "temperature"), [(4, 0.02), (30, 0.1), (500, 1.0)])
def test_the_command_counts_as_loops_do(model, folder, here, tmp_path, capsys, neighbors, temperature):
    wanted = settings(model, folder, neighbors=neighbors, temperature=temperature, output=tmp_path / "found.json")
    found = command(here, dataclasses.replace(wanted, classes=folder / "names.txt"))
    counts = slow_counts(model, folder, neighbors, temperature)
    numbers = found["results"][str(model)]["memory 112"]
    rows, columns, hits = counts.sum(1), counts.sum(0), counts.diagonal()
    for c, one in enumerate(numbers["per_class"]):
        union = rows[c] + columns[c] - hits[c]
        assert (one["name"], one["pixels"]) == (f"class {c}", columns[c])
        if not union:
            assert one["iou"] is None
        else:
            assert one["iou"] == pytest.approx(hits[c] / union, abs=0.002)  # some pixels are between two classes
    shown = [one["iou"] for one in numbers["per_class"] if one["iou"] is not None]
    assert [one["iou"] for one in numbers["per_class"]].index(None) == 4
    assert numbers["per_class"][3]["iou"] == 0
    assert numbers["miou"] == pytest.approx(np.mean(shown))
    assert numbers["pixel_accuracy"] == pytest.approx(hits.sum() / counts.sum(), abs=0.002)
    assert 0.2 < numbers["pixel_accuracy"] < 1
    assert f"{100 * numbers['miou']:.2f}" in capsys.readouterr().out


def test_the_protocol_is_told(model, folder, here, tmp_path):
    found = command(here, settings(model, folder, baseline=True, output=tmp_path / "found.json"))
    protocol, facts = found["protocol"], found["protocol"]["features"][str(model)]
    assert (protocol["train"], protocol["test"]) == (7, 5)
    assert (facts["stride"], facts["map"], facts["input"], facts["channels"]) == (16, [4, 4], [64, 64], 256)
    assert protocol["resolution_of_comparison"] == [64, 64]
    assert (protocol["memory"], protocol["neighbors"], protocol["temperature"]) == ([14, 112], 4, 0.02)
    assert set(found["results"]) == {str(model), f"{model}, random"}
    small, large = found["results"][str(model)].values()
    assert small["entries"] == 12  # two of each image, but none of the one without labels
    assert large["entries"] <= 6 * 16
    assert large["megabytes"] == pytest.approx(large["entries"] * (256 + 255) * 4 / 1e6, abs=0.001)
    assert small["miou"] != large["miou"]
    assert len(large["per_class"]) == 4  # as many as the masks show


def test_a_pixel_counts_for_the_cell_that_its_centre_is_in():
    truths = torch.tensor([[[0, 0, 1, 255, 2]] * 5, [[255] * 5] * 5], dtype=torch.uint8)
    shares = class_shares(truths, 2, 2, 3)  # cells of 2.5 pixels: the middle column is of the second
    assert shares[0].tolist() == [[1, 0, 0], [0, 0.5, 0.5]] * 2
    assert not shares[1].any()


def test_what_is_drawn_follows_the_seed(model, folder, here, tmp_path):
    output = tmp_path / "found.json"
    first, again, other = (
        command(here, settings(model, folder, seed=seed, output=output))["results"] for seed in (0, 0, 1)
    )
    assert first == again
    small, large = first[str(model)], other[str(model)]
    assert small["memory 14"] != large["memory 14"]
    assert small["memory 112"] == large["memory 112"]  # all cells, however they are drawn


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"memory": ()}, "--memory: give at least one number of cells"),
        ({"memory": (6, 100)}, "--memory 6 is less than a cell of each of the 7 images"),
        ({"neighbors": 0}, "--neighbors 0: give at least 1"),
        ({"temperature": 0.0}, "--temperature 0.0: give one above 0"),
        ({"seed": -1}, "--seed -1: give at least 0"),
        ({"size": 0}, "--size 0: give at least 1"),
        ({"models": ()}, "--models: name at least one"),
        ({"models": ("slotcon_nope",)}, "slotcon_nope could not be loaded: there are no weights"),
        ({"train_split": "training"}, "there is no folder .*images/training"),
        ({"output": Path("/tmp")}, "/tmp is a folder: name a JSON file"),
    ],
)
def test_errors_are_one_sentence(model, folder, here, change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        command(here, settings(model, folder, **change))
    assert "\n" not in str(error.value)


def test_masks_without_a_label_are_refused(model, folder, here, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "masks" / split).mkdir(parents=True)
        for file in (folder / "masks" / split).iterdir():
            Image.fromarray(np.full((72, 90), 255, np.uint8)).save(tmp_path / "masks" / split / file.name)
    with pytest.raises(ValueError, match="no pixel of the masks to learn from has a label"):
        command(here, settings(model, folder, masks=tmp_path / "masks"))

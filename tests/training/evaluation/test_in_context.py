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

from training.evaluation import dense, in_context
from training.evaluation.cells import class_counts
from training.evaluation.in_context import InContext

CLASSES, SIZE = 5, 64


def settings(backbone: Path, masked: Path, **others: object) -> InContext:
    wanted = InContext(
        models=(str(backbone),), data=masked / "images", masks=masked / "masks", size=SIZE, batch_size=2, workers=0
    )
    return dataclasses.replace(wanted, **{"memory": (14, 7 * 16), "neighbors": 4, **others})


def command(here, chosen: InContext) -> dict:
    here(lambda s: dense.evaluate("in_context", s, in_context.measure, in_context.protocol), chosen)
    return json.loads(chosen.output.read_text())


def read(masked: Path, split: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = dense.open_parts(InContext(models=("x",), data=masked / "images", masks=masked / "masks", size=SIZE))
    return list(images.train if split == "train" else images.test)


def slow_counts(backbone: Path, masked: Path, neighbors: int, temperature: float) -> np.ndarray:
    """Count pixels by predicted and true class, where all cells are remembered."""
    net = timm.create_model(f"local-dir:{backbone}", pretrained=True).eval()
    mean, std = (torch.tensor(net.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    memory = []
    for image, truth in read(masked, "train"):
        with torch.no_grad():
            found = F.normalize(net.forward_features(((image / 255 - mean) / std)[None])[0], dim=0)
        for y in range(4):
            for x in range(4):
                patch = truth[16 * y : 16 * y + 16, 16 * x : 16 * x + 16].flatten().tolist()
                labels = [label for label in patch if label != 255]
                if labels:
                    memory.append((found[:, y, x], [labels.count(c) / len(labels) for c in range(CLASSES)]))
    counts = np.zeros((CLASSES, CLASSES), int)
    for image, truth in read(masked, "val"):
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
def test_the_command_counts_as_loops_do(backbone, masked, here, tmp_path, capsys, neighbors, temperature):
    wanted = settings(
        backbone, masked, neighbors=neighbors, temperature=temperature, output=tmp_path / "found.json"
    )
    found = command(here, dataclasses.replace(wanted, classes=masked / "names.txt"))
    counts = slow_counts(backbone, masked, neighbors, temperature)
    numbers = found["results"][str(backbone)]["memory 112"]
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


def test_the_protocol_is_told(backbone, masked, here, tmp_path):
    found = command(here, settings(backbone, masked, baseline=True, output=tmp_path / "found.json"))
    protocol, facts = found["protocol"], found["protocol"]["features"][str(backbone)]
    assert (protocol["train"], protocol["test"]) == (7, 5)
    assert (facts["stride"], facts["map"], facts["input"], facts["channels"]) == (16, [4, 4], [64, 64], 256)
    assert protocol["resolution_of_comparison"] == [64, 64]
    assert (protocol["memory"], protocol["neighbors"], protocol["temperature"]) == ([14, 112], 4, 0.02)
    assert set(found["results"]) == {str(backbone), f"{backbone}, random"}
    small, large = found["results"][str(backbone)].values()
    assert small["entries"] == 12  # two of each image, but none of the one without labels
    assert large["entries"] <= 6 * 16
    assert large["megabytes"] == pytest.approx(large["entries"] * (256 + 255) * 4 / 1e6, abs=0.001)
    assert small["miou"] != large["miou"]
    assert len(large["per_class"]) == 4  # as many as the masks show


def test_a_pixel_counts_for_the_cell_that_its_centre_is_in():
    truths = torch.tensor([[[0, 0, 1, 255, 2]] * 5, [[255] * 5] * 5], dtype=torch.uint8)
    counts = class_counts(truths, 2, 2, 3)  # cells of 2.5 pixels: the middle column and row are of the second
    assert counts[0].tolist() == [[4, 0, 0], [0, 2, 2], [6, 0, 0], [0, 3, 3]]
    assert not counts[1].any()


def test_what_is_drawn_follows_the_seed(backbone, masked, here, tmp_path):
    output = tmp_path / "found.json"
    first, again, other = (
        command(here, settings(backbone, masked, seed=seed, output=output))["results"] for seed in (0, 0, 1)
    )
    assert first == again
    small, large = first[str(backbone)], other[str(backbone)]
    assert small["memory 14"] != large["memory 14"]
    assert small["memory 112"] == large["memory 112"]  # all cells, however they are drawn


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"memory": ()}, "--memory: give at least one number of cells"),
        ({"memory": (6, 100)}, "--memory 6 is less than one cell per image: give at least 7"),
        ({"neighbors": 0}, "--neighbors 0: give at least 1"),
        ({"temperature": 0.0}, "--temperature 0.0: give one above 0"),
        ({"seed": -1}, "--seed -1: give at least 0"),
        ({"size": 0}, "--size 0: give at least 1"),
        ({"models": ()}, "--models: name at least one"),
        ({"models": ("slotcon_nope",)}, "there are no weights 'slotcon_nope'"),
        ({"train_split": "training"}, "there is no folder .*images/training"),
        ({"output": Path("/tmp")}, "/tmp is a folder: name a JSON file"),
    ],
)
def test_errors_are_one_sentence(backbone, masked, here, change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        command(here, settings(backbone, masked, **change))
    assert "\n" not in str(error.value)


def test_masks_without_a_label_are_refused(backbone, masked, here, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "masks" / split).mkdir(parents=True)
        for file in (masked / "masks" / split).iterdir():
            Image.fromarray(np.full((72, 90), 255, np.uint8)).save(tmp_path / "masks" / split / file.name)
    with pytest.raises(ValueError, match="no pixel of the training masks has a label"):
        command(here, settings(backbone, masked, masks=tmp_path / "masks"))

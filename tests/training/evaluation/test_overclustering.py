"""Clusters as segments against their pixels one by one, and what is reported of several seeds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slotcon_hub.models.maps import load_map
from training.evaluation import dense, overclustering
from training.evaluation.metrics import merge_majority
from training.evaluation.overclustering import Overclustering, average

SIZE, CLASSES = 64, 5


def settings(backbone: Path, masked: Path, **others: object) -> Overclustering:
    paths = {"data": masked / "images", "masks": masked / "masks"}
    wanted = Overclustering(models=(str(backbone),), **paths, size=SIZE, batch_size=2, workers=0)
    return dataclasses.replace(wanted, **{"clusters": 12, "seeds": 3, **others})


def command(here, chosen: Overclustering) -> dict:
    here(lambda s: dense.evaluate("overclustering", s, overclustering.measure, overclustering.protocol), chosen)
    return json.loads(chosen.output.read_text())


def slow_counts(chosen: Overclustering, centers: torch.Tensor) -> np.ndarray:
    model, counts = load_map(chosen.models[0], SIZE), np.zeros((len(centers), CLASSES), int)
    for image, truth in dense.open_parts(chosen).test:
        with torch.no_grad():
            features = F.normalize(model(image[None]), dim=1)
        pixels = F.interpolate(features, (SIZE, SIZE), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        nearest = (pixels[:, :, None] - centers).square().sum(3).argmin(2)
        for k, label in zip(nearest.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if label != 255:
                counts[k, label] += 1
    return counts


def slow_majority(counts: np.ndarray) -> tuple[float, float]:
    """mIoU over the classes that are there, and accuracy, from the definitions."""
    classes = [int(row.argmax()) if row.any() else -1 for row in counts]
    ious, hits = [], 0
    for c in range(counts.shape[1]):
        mine = [k for k, one in enumerate(classes) if one == c]
        inter = sum(counts[k, c] for k in mine)
        union = sum(counts[k].sum() for k in mine) + counts[:, c].sum() - inter
        hits += inter
        if union:
            ious.append(inter / union)
    return float(np.mean(ious)), hits / counts.sum()


def test_many_clusters_take_the_class_of_most_of_their_pixels(backbone, masked, here, tmp_path, monkeypatch):
    drawn, kmeans = [], overclustering.kmeans
    monkeypatch.setattr(overclustering, "kmeans", lambda *a: drawn.append(kmeans(*a)) or drawn[-1])
    chosen = settings(backbone, masked, classes=masked / "names.txt", output=tmp_path / "found.json")
    found = command(here, chosen)
    matched, majority = found["results"][str(backbone)].values()
    assert [len(centers) for centers in drawn] == [5, 5, 5, 12, 12, 12]
    slow = [slow_majority(slow_counts(chosen, centers)) for centers in drawn[3:]]
    assert majority["miou_of_seeds"] == pytest.approx([miou for miou, _ in slow], abs=0.002)
    assert majority["miou"] == pytest.approx(np.mean([miou for miou, _ in slow]), abs=0.002)
    assert majority["miou_deviation"] == pytest.approx(np.std(majority["miou_of_seeds"], ddof=1))
    assert majority["pixel_accuracy"] == pytest.approx(np.mean([accuracy for _, accuracy in slow]), abs=0.002)
    assert majority["per_class"][4]["iou"] is None
    assert majority["per_class"][3]["pixels"] > 0
    assert matched["pixel_accuracy"] < majority["pixel_accuracy"]
    assert found["protocol"]["seeds"] == [0, 1, 2]
    assert list(found["results"][str(backbone)]) == ["Hungarian, K = 5", "many to one, K = 12"]


def test_without_names_there_are_as_many_clusters_as_labels(backbone, masked, here, tmp_path, capsys):
    found = command(here, settings(backbone, masked, seeds=1, output=tmp_path / "found.json"))
    matched = found["results"][str(backbone)]["Hungarian, K = 3"]
    assert [one["name"] for one in matched["per_class"]] == ["0", "1", "2", "3"]  # 3 is in measured masks alone
    assert matched["miou_deviation"] is None
    assert "±" not in capsys.readouterr().out


def test_of_classes_that_are_as_frequent_the_first_is_taken():
    counts = torch.tensor([[2, 5, 5], [0, 0, 0], [1, 0, 4], [3, 4, 0]])
    assert merge_majority(counts).tolist() == [[0, 0, 0], [5, 9, 5], [1, 0, 4]]


def test_classes_that_some_seeds_lack():
    runs = [
        {
            "miou": miou,
            "pixel_accuracy": 0.5,
            "per_class": [{"name": "a", "pixels": 3, "iou": iou}, {"iou": np.nan}],
        }
        for miou, iou in ((0.2, np.nan), (0.4, 0.4))
    ]
    found = average(runs)
    assert (found["miou"], found["per_class"][0]["iou"]) == (pytest.approx(0.3), 0.4)
    assert found["miou_deviation"] == pytest.approx(0.02**0.5)
    assert np.isnan(found["per_class"][1]["iou"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"clusters": 500}, "500 clusters of 96 cells: ask for fewer clusters, or give more images"),
        ({"clusters": 0}, "--clusters 0: give at least 1"),
        ({"seeds": 0}, "--seeds 0: give at least 1"),
        ({"iterations": 0}, "--iterations 0: give at least 1"),
        ({"cells": 6}, "--cells 6 is less than one cell per image: give at least 7"),
    ],
)
def test_errors_are_one_sentence(backbone, masked, here, change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        command(here, settings(backbone, masked, **change))
    assert "\n" not in str(error.value)

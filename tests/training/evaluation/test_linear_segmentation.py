"""The linear classifier of cells: its loss against pixels, its numbers against a map of its scores."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F

from slotcon_hub.models.maps import load_map
from training.evaluation import dense, linear_segmentation
from training.evaluation.cells import Cells, class_counts
from training.evaluation.linear_segmentation import LinearSegmentation, loss, train

SIZE = 64


def settings(backbone: Path, masked: Path, **others: object) -> LinearSegmentation:
    paths = {"data": masked / "images", "masks": masked / "masks"}
    wanted = LinearSegmentation(models=(str(backbone),), **paths, size=SIZE, batch_size=2, workers=0)
    return dataclasses.replace(wanted, **{"epochs": 20, "train_batch_size": 16, "lr": 0.01, **others})


def command(here, chosen: LinearSegmentation) -> dict:
    measure, protocol = linear_segmentation.measure, linear_segmentation.protocol
    here(lambda s: dense.evaluate("linear_segmentation", s, measure, protocol), chosen)
    return json.loads(chosen.output.read_text())


def test_the_loss_is_that_of_the_pixels():
    truths = torch.randint(0, 4, (2, 12, 12)).where(torch.rand(2, 12, 12) < 0.7, 255).byte()
    scores = torch.randn(2, 5, 3, 2, requires_grad=True)  # class 4 is nowhere
    found = loss(scores.flatten(2).mT.flatten(0, 1), class_counts(truths, 3, 2, 5).flatten(0, 1))
    pixels = F.interpolate(scores, (12, 12), mode="nearest")
    expected = F.cross_entropy(pixels, truths.long(), ignore_index=255)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one, scores)[0] for one in (found, expected)))


def test_what_a_line_can_separate_is_separated():
    labels = torch.arange(400) % 3
    features = torch.randn(400, 8) + 6 * F.one_hot(labels, 8) + 100  # an offset that would stop an unscaled one
    features[:, 7] *= 1000
    counts = F.one_hot(labels + labels // 2, 5).float() * 9  # classes 0, 1 and 3 of five
    before = features.clone()
    chosen = LinearSegmentation(models=("x",), data=Path(), masks=Path(), epochs=30, train_batch_size=64, lr=0.01)
    convolution, seen = train(Cells(features, counts, (400,), 5), chosen, quiet=True)
    assert seen == [0, 1, 3]
    scores = convolution(before.T[None, :, :, None])[0, :, :, 0]
    assert (scores.argmax(0) == labels).float().mean() > 0.98


def test_pixels_take_the_class_of_the_highest_score(backbone, masked, here, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(linear_segmentation, "train", lambda *a, **k: trained.append(train(*a, **k)) or trained[-1])
    chosen = settings(backbone, masked, classes=masked / "names.txt", output=tmp_path / "found.json")
    found = command(here, chosen)["results"][str(backbone)]["linear"]
    ((convolution, seen),) = trained
    assert seen == [0, 1, 2]
    model, truths, predictions = load_map(str(backbone), SIZE), [], []
    for image, truth in dense.open_parts(chosen).test:
        with torch.no_grad():
            scores = convolution(model(image[None]))
        maps = F.interpolate(scores, (SIZE, SIZE), mode="bilinear", align_corners=False)
        labeled = truth != 255
        truths.append(truth[labeled].numpy())
        predictions.append(np.array(seen)[maps.argmax(1)[0][labeled].numpy()])
    truth, predicted = np.concatenate(truths), np.concatenate(predictions)
    ious = sklearn.metrics.jaccard_score(truth, predicted, labels=range(4), average=None, zero_division=0)
    assert [one["iou"] for one in found["per_class"][:4]] == pytest.approx(ious, abs=0.002)
    assert found["per_class"][4]["iou"] is None
    assert found["miou"] == pytest.approx(ious.mean(), abs=0.002)  # class 3, never seen, counts 0
    assert found["pixel_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted), abs=0.002)


def test_training_teaches(backbone, masked, here, tmp_path):
    shown = {"test_split": "train", "output": tmp_path / "found.json"}
    none, some = (
        command(here, settings(backbone, masked, epochs=epochs, **shown))["results"][str(backbone)]["linear"]
        for epochs in (1, 40)
    )
    assert some["pixel_accuracy"] > none["pixel_accuracy"] + 0.05
    assert some["cells"] <= 6 * 16
    few = command(here, settings(backbone, masked, cells=20, **shown))
    assert few["results"][str(backbone)]["linear"]["cells"] == 12
    assert few["protocol"]["batch"] == "16 cells"
    assert few["protocol"]["features"][str(backbone)]["stride"] == 16


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cells": 3}, "--cells 3 is less than one cell per image: give at least 7"),
        ({"cells": 0}, "--cells 0: give at least 1"),
        ({"epochs": 0}, "--epochs 0: give at least 1"),
        ({"train_batch_size": 0}, "--train-batch-size 0: give at least 1"),
        ({"lr": 0.0}, "--lr 0.0: give one above 0"),
    ],
)
def test_errors_are_one_sentence(backbone, masked, here, change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        command(here, settings(backbone, masked, **change))
    assert "\n" not in str(error.value)

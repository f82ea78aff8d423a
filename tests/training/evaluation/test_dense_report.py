"""Models of which only some meet the last class, and a table that fails."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from slotcon_hub.models.saving import save_model
from training.evaluation import dense, in_context, linear_segmentation, overclustering

COMMANDS = {
    "in_context": (in_context, in_context.InContext, {"memory": (7,), "neighbors": 1}),
    "linear_segmentation": (linear_segmentation, linear_segmentation.LinearSegmentation, {"cells": 7, "lr": 0.1}),
    "overclustering": (overclustering, overclustering.Overclustering, {"cells": 7, "clusters": 4, "seeds": 2}),
}


@pytest.fixture(scope="module")
def coarse(tmp_path_factory) -> Path:
    """A folder of a backbone of stride 32."""
    folder = tmp_path_factory.mktemp("coarse")
    torch.manual_seed(0)
    save_model(timm.create_model("resnet10t", num_classes=0).eval(), folder, 64)
    return folder


@pytest.fixture(scope="module")
def corner(tmp_path_factory) -> Path:
    """Images and masks of two splits: class 3 is a corner of one training image; as bright is one test image."""
    folder = tmp_path_factory.mktemp("corner")
    rng = np.random.default_rng(0)
    for split, number in (("train", 7), ("val", 2)):
        for i in range(number):
            truth, pixels = np.full((64, 64), i % 2), rng.integers(0, 60, (64, 64, 3)) + 60 * (i % 2)
            if i == 0:
                pixels[:32, :32] = rng.integers(200, 256, (32, 32, 3))
                truth[:32, :32] = 3 if split == "train" else 0
            for name, values in (("images", pixels), ("masks", truth)):
                (folder / name / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(folder / name / split / f"{i}.png")
    return folder


def command(here, name: str, folder: Path, output: Path, *models: Path, **others: object) -> dict:
    module, kind, options = COMMANDS[name]
    paths = {"data": folder / "images", "masks": folder / "masks", "output": output}
    chosen = kind(models=tuple(map(str, models)), **paths, size=64, batch_size=2, workers=0, **options)
    chosen = dataclasses.replace(chosen, **others)
    here(lambda s: dense.evaluate(name, s, module.measure, module.protocol), chosen)
    return json.loads(output.read_text())


@pytest.mark.parametrize("seed", [6, 10])
@pytest.mark.parametrize("name", COMMANDS)
def test_classes_are_those_of_the_masks_for_every_model(backbone, coarse, corner, here, tmp_path, name, seed):
    """The cells of one model alone have the last class, which is in no test mask."""
    found = command(here, name, corner, tmp_path / "found.json", backbone, coarse, seed=seed)["results"]
    one, two = found[str(backbone)], found[str(coarse)]
    assert list(one) == list(two)
    for numbers in (*one.values(), *two.values()):
        assert [each["name"] for each in numbers["per_class"]] == ["0", "1", "2", "3"]


def test_results_are_written_before_a_table_can_fail(backbone, corner, here, tmp_path, monkeypatch):
    monkeypatch.setattr("training.evaluation.dense_report.show", lambda table: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command(here, "in_context", corner, tmp_path / "found.json", backbone)
    assert list(json.loads((tmp_path / "found.json").read_text())["results"]) == [str(backbone)]

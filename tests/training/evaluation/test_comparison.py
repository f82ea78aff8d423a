"""Comparisons that end early: names that do not exist, images that cannot be read, a model that fails."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from slotcon_hub.cli import main
from slotcon_hub.models.maps import load_map
from training.data.masks import CenterSquare, LabeledImages
from training.engine.batchnorm import recalibrate_batchnorm
from training.evaluation import command as shared
from training.evaluation import dense, discovery, in_context
from training.evaluation.comparison import compare_maps, compare_models
from training.evaluation.in_context import InContext

SIZE = 64


@pytest.fixture
def settings(backbone: Path, masked: Path, tmp_path: Path) -> InContext:
    """Of a copy of the images, with a file for the results."""
    for name in ("images", "masks"):
        shutil.copytree(masked / name, tmp_path / name)
    paths = {"data": tmp_path / "images", "masks": tmp_path / "masks", "output": tmp_path / "found.json"}
    return InContext(models=(str(backbone),), **paths, size=SIZE, batch_size=2, workers=0, memory=(30,))


def command(here, chosen: InContext) -> dict:
    here(lambda s: dense.evaluate("in_context", s, in_context.measure, in_context.protocol), chosen)
    return json.loads(chosen.output.read_text())


def never(*_: object, **__: object) -> dict:
    raise AssertionError("measured")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("slotcon_nope", "there are no weights 'slotcon_nope', and no such folder"),
        ("resnet10t.nope", r"resnet10t\.nope could not be loaded: choose one of timm\.list_models"),
        ("resnet1000", "there are no weights 'resnet1000'"),
        ("no/folder", "there are no weights 'no/folder'"),
        ("/no/file.safetensors", r"/no/file\.safetensors is no file of `slotcon-hub embed`"),
    ],
)
def test_names_are_checked_before_the_first_model_is_measured(settings, here, monkeypatch, second, said):
    monkeypatch.setattr(in_context, "measure", never)
    with pytest.raises(ValueError, match=said):
        command(here, dataclasses.replace(settings, models=(*settings.models, second)))


def test_a_baseline_of_a_file_is_refused_before_the_first_model_is_measured(settings, here, monkeypatch, tmp_path):
    file = str(tmp_path / "x.safetensors")
    words = ["--model", settings.models[0], "--images", str(settings.data), "--output", file, "--device", "cpu"]
    assert main(["embed", *words, "--dense", "--size", str(SIZE)]) == 0
    monkeypatch.setattr(in_context, "measure", never)
    with pytest.raises(ValueError, match="--baseline needs a model, but"):
        command(here, dataclasses.replace(settings, models=(*settings.models, file), baseline=True))


def test_prototypes_alone_are_a_model_to_discover_with(prototypes, tmp_path):
    shutil.copytree(prototypes, tmp_path / "export" / "prototypes")
    taken = []
    compare_models(
        [str(tmp_path)],
        lambda name, pretrained: discovery._load_scores(name, SIZE, pretrained=pretrained),
        lambda model: {"groups": model.channels},
        lambda model: {},
        lambda results, features: taken.append(results),
        part="prototypes",
    )
    assert taken == [{str(tmp_path): {"groups": 15}}]


@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt])
def test_finished_models_are_reported_if_another_one_fails(settings, here, monkeypatch, capsys, error):
    measure, measured = in_context.measure, []

    def fail_at_the_second(*args: object) -> dict:
        measured.append(args)
        if len(measured) == 2:
            raise error("full")
        return measure(*args)

    expected = command(here, settings)
    monkeypatch.setattr(in_context, "measure", fail_at_the_second)
    settings.output.unlink()
    capsys.readouterr()
    with pytest.raises(error, match="full"):
        command(here, dataclasses.replace(settings, baseline=True))
    found = json.loads(settings.output.read_text())
    assert (found["results"], found["protocol"]) == (expected["results"], expected["protocol"])
    assert "mIoU" in capsys.readouterr().out


def test_nothing_is_reported_if_the_first_model_fails(settings, here, monkeypatch):
    monkeypatch.setattr(in_context, "measure", never)
    with pytest.raises(AssertionError, match="measured"):
        command(here, settings)
    assert not settings.output.exists()


def test_an_unreadable_image_does_not_end_a_baseline(settings, here):
    (settings.data / "train" / "2.png").write_bytes(b"no image")
    results = command(here, dataclasses.replace(settings, baseline=True))["results"]
    assert list(results) == [settings.models[0], f"{settings.models[0]}, random"]


def test_another_image_calibrates_in_the_place_of_an_unreadable_one(settings, capsys):
    """The statistics of a baseline are those of images of which the next one is there twice."""
    folder, masks, crop = settings.data / "train", settings.masks / "train", CenterSquare(SIZE)
    (folder / "2.png").write_bytes(b"no image")
    models = []

    def measure(model: object) -> dict:
        models.append(model)
        return {}

    images = LabeledImages(folder, masks, transform=crop)
    chosen = dataclasses.replace(settings, baseline=True)
    compare_maps(chosen, Accelerator(cpu=True), images, load_map, measure, lambda results, features: None)
    assert capsys.readouterr().err.count("2.png cannot be read") == 1
    shutil.copy(folder / "3.png", folder / "2.png")
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))[:6].tolist()
    assert 2 in order
    net = load_map(settings.models[0], SIZE, pretrained=False)
    net.load_state_dict({**models[1].state_dict(), **buffers(net)})
    batches = [torch.stack([images[i][0] for i in pair]) for pair in (order[:2], order[2:4], order[4:])]
    recalibrate_batchnorm(net.model, map(net.standardize, batches))
    for name, value in buffers(models[1]).items():
        torch.testing.assert_close(value, buffers(net)[name])


def test_a_calibration_without_readable_images_ends_in_one_sentence(settings, monkeypatch):
    for path in (settings.data / "train").iterdir():
        path.write_bytes(b"no image")
    images = LabeledImages(settings.data / "train", settings.masks / "train")
    monkeypatch.setattr(sys, "argv", ["in_context", "--models", "x", "--data", "x", "--masks", "x"])
    with pytest.raises(SystemExit, match=r"error: .* cannot be read: .*; at least 2 of 7 images are unreadable"):
        shared.run("in_context", "", InContext, lambda _: list(shared.draw_batches(images, 2)))


def buffers(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(net.named_buffers())

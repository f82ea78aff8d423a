"""Evaluation between epochs: images of the groups, and the probe."""

import errno
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from image_files import encode
from PIL import Image
from runs import TINY, lines
from timm.data import resolve_data_config

from training import pretrain
from training.evaluation.features import Labeled, extract
from training.evaluation.knn import measure
from training.evaluation.models import load
from training.evaluation.probes import Probe
from training.pretraining import watch
from training.tools.reliability.launch import Launch


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    """A folder with two parts of two classes."""
    rng = np.random.default_rng(0)
    for split, number in {"train": 12, "validation": 6}.items():
        for i in range(number):
            place = tmp_path / "labeled" / split / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 90, (40, 40, 3)) + np.array([150, 0, 0] if i % 2 else [0, 0, 150])
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return tmp_path / "labeled"


def test_groups_and_probe_of_a_run(run, images, labeled, tmp_path):
    options = ["--data", images, *TINY.split()]
    looked = ["--show-every", 1, "--probe", labeled]
    watched = run("coco_800ep", *options, *looked, figures=True)
    drawn = sorted((watched / "slots").iterdir())
    assert [path.name for path in drawn] == ["epoch-0001.png", "epoch-0002.png"]
    for path in drawn:
        with Image.open(path) as image:
            assert image.width > 300
    probed = {line["step"]: line["knn"] for line in lines(watched) if "knn" in line}
    assert sorted(probed) == [2, 4]
    assert all(0 <= accuracy <= 1 for accuracy in probed.values())
    plain = run("coco_800ep", *options, "--show-every", 0, "--output", tmp_path / "plain")
    assert not (plain / "slots").exists()
    assert [line["loss"] for line in lines(plain)] == [line["loss"] for line in lines(watched)]


def preprocessing(model: torch.nn.Module) -> dict:
    return json.loads(json.dumps(resolve_data_config({}, model=model)))  # lists, as in an export


def test_the_probe_measures_what_is_exported(run, images, tmp_path, monkeypatch):
    """A transformer, since timm's have another mean and deviation than pre-training."""
    rng = np.random.default_rng(0)
    for split, number in {"train": 40, "validation": 60}.items():
        for i in range(number):
            place = tmp_path / "labeled" / split / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            tones = rng.integers(0, 200, 3) + np.array([25, 0, 25]) * (i % 2)
            pixels = rng.integers(0, 30, (40, 50, 3)) + tones
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    used = []
    monkeypatch.setattr(watch, "extract", lambda *a, **k: used.append(preprocessing(a[0])) or extract(*a, **k))
    options = ["--data", images, *TINY.split(), "--show-every", 2, "--probe", tmp_path / "labeled"]
    folder = run("coco_800ep", *options, "--backbone", "test_vit")
    exported = load(str(folder))
    assert used == [preprocessing(exported)] * 2
    assert preprocessing(timm.create_model("test_vit"))["mean"] != used[0]["mean"]
    parts = (Labeled(str(tmp_path / "labeled"), split) for split in ("train", "validation"))
    found = measure(exported, *parts, Accelerator(cpu=True), Probe(models=(str(folder),), data="", workers=0))
    assert lines(folder)[-1]["knn"] == found["k = 20"]


def test_a_probe_that_cannot_be_opened_is_one_sentence(run, images, capsys):
    with pytest.raises(SystemExit, match="error: there is no folder /nowhere"):
        run("coco_800ep", "--data", images, *TINY.split(), "--probe", "/nowhere")
    with pytest.raises(SystemExit):  # of wrong usage, as tyro has it
        run("coco_800ep", "--data", images, *TINY.split(), "--probe", "/nowhere", "--show-every", 0)
    assert "--probe is measured every" in capsys.readouterr().err


def test_looking_never_ends_a_run(run, images, labeled, tmp_path, monkeypatch):
    image = labeled / "validation/class1/3.png"
    for damaged in (image, image.with_name("5.png")):  # one alone is tolerated
        damaged.write_bytes(damaged.read_bytes()[:200])

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("training.pretraining.preview.draw_groups", full_disk)
    options = ["--data", images, *TINY.split(), "--show-every", 1, "--probe", labeled]
    monkeypatch.setattr("training.pretrain.finish", lambda *_: None)
    folder = run("coco_800ep", *options, figures=True)
    found = lines(folder)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert not any("knn" in line for line in found)
    assert (folder / "checkpoints/step-00000004").is_dir()
    drawing, probe = (folder / "warnings.txt").read_text().splitlines()  # once each
    assert drawing == "step 2: the groups could not be drawn: [Errno 28] No space left on device"
    assert probe.startswith("step 2: the probe failed: 2 of 6 images have no features, the first of them ")
    assert str(image) in probe


@pytest.mark.parametrize("part", ["backbone_model", "extract", "knn"])
def test_a_full_gpu_leaves_the_probe_out(run, images, labeled, monkeypatch, part):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nand a long story")

    monkeypatch.setattr(f"training.pretraining.watch.{part}", full)
    folder = run("coco_800ep", "--data", images, *TINY.split(), "--show-every", 2, "--probe", labeled)
    assert (folder / "warnings.txt").read_text() == "step 4: the probe failed: CUDA out of memory.\n"
    assert len(lines(folder)) == 4


def short_of_memory(argv: list[str]) -> None:
    """Train; the first process, which has the only batch, has no memory left for the first probe."""
    original, calls = watch.backbone_model, []

    def model(slotcon: object) -> torch.nn.Module:
        made = original(slotcon)
        calls.append(1)
        if os.environ["RANK"] == "0" and len(calls) == 1:
            made.register_forward_pre_hook(full)
        return made

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    watch.backbone_model = model
    pretrain.main(argv)


def test_one_process_without_memory_keeps_no_other_waiting(images, labeled, tmp_path):
    options = ["--data", images, *TINY.split(), "--show-every", 1, "--probe", labeled]
    argv = ["coco_800ep", *options, "--output", tmp_path / "run"]
    launch = Launch(argv, tmp_path / "log", 2, main=short_of_memory)
    assert not any(launch.end()), launch.log.read_text()
    assert [line["step"] for line in lines(tmp_path / "run") if "knn" in line] == [4]
    assert "step 2: the probe failed: " in (tmp_path / "run/warnings.txt").read_text()


def test_a_probe_of_too_many_images_is_refused(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr("training.pretraining.watch.PROBED", 2)
    for split, number in {"train": 3, "validation": 2}.items():
        for i in range(number):
            place = tmp_path / "labeled" / split / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(place / f"{i}.png")
    with pytest.raises(SystemExit, match=r"has 3 images in a split, .*: give a selection of at most 2, and"):
        run("coco_800ep", "--data", images, *TINY.split(), "--probe", tmp_path / "labeled")
    assert not (tmp_path / "run").exists()


def tables(folder: Path, **labels: list[str]) -> Path:
    """A Parquet file for each split, of images in a column img and labels in a column kind."""
    folder.mkdir()
    image = {"bytes": encode(Image.new("RGB", (8, 8)), "PNG"), "path": None}
    for split, kinds in labels.items():
        rows = {"img": [image] * len(kinds), "kind": kinds}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    return folder


COLUMNS = ("--show-every", 2, "--image-column", "img", "--label-column", "kind")


def test_the_probe_of_a_run_has_columns(images, run, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tables(tmp_path / "tables", train=["cat", "dog"] * 2, validation=["dog", "cat"])
    folder = run("coco_800ep", "--data", images, *TINY.split(), "--probe", data, *COLUMNS)
    assert [line["knn"] for line in lines(folder) if "knn" in line] == [0.5]  # of images that are all alike


def test_the_splits_of_a_probe_have_the_same_classes(images, run, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tables(tmp_path / "tables", train=["cat", "dog"] * 2, validation=["dog", "ant"])
    with pytest.raises(SystemExit, match=r"error: .* have different classes, only one of them has ant, cat"):
        run("coco_800ep", "--data", images, *TINY.split(), "--probe", data, *COLUMNS)
    assert not (tmp_path / "run").exists()

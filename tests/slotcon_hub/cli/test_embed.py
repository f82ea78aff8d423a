"""``slotcon-hub embed`` as people type it: what the file holds, of an interrupted command and of processes."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from prototype_models import SIDE, paint
from safetensors import safe_open
from tiny import shaken

from slotcon_hub.cli import embed, main
from slotcon_hub.concepts.feature_file import FeatureFile
from slotcon_hub.images import decode
from slotcon_hub.models.maps import load_map
from slotcon_hub.models.saving import save_model

IMAGES = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(shaken(timm.create_model("slotcon_nano", num_classes=0), 0.05).eval(), folder, SIDE)
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = paint(tmp_path_factory.mktemp("images"), IMAGES)
    (folder / "04b.jpg").write_bytes(b"no image")
    return folder


def run(model, images, output, *options):
    words = ["--model", model, "--images", str(images), "--output", str(output), "--device", "cpu"]
    return main(["embed", *words, "--batch-size", "3", *options])


def test_pooled_features_are_what_the_model_returns(model, images, tmp_path, capsys):
    assert run(model, images, tmp_path / "x.safetensors") == 0
    out, err = capsys.readouterr()
    assert "x.safetensors has the features of 8 images, 256 each, in " in out
    assert "skipped, since it cannot be read: " in err
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        names = json.loads(file.metadata()["names"])
        features, state = file.get_tensor("features"), file.get_tensor("state")
    assert names == sorted(str(path.relative_to(images)) for path in images.rglob("*.*"))
    assert state.tolist() == [2 if name == "04b.jpg" else 1 for name in names]
    assert features.dtype == torch.float32
    net = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    for name, row in zip(names, features, strict=True):
        if name == "04b.jpg":
            assert not row.any()
            continue
        with Image.open(images / name) as image, torch.no_grad():
            expected = net(transform(image)[None])[0]
        torch.testing.assert_close(row, expected, atol=0.01, rtol=0.01)  # Pillow rounds otherwise
    config = FeatureFile(tmp_path / "x.safetensors").config
    assert (config["model"], config["kind"], config["crop"], config["interpolation"]) == (
        model,
        "pooled",
        64,
        "bicubic",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors"]


def test_maps_in_float16(model, images, tmp_path):
    assert run(model, images, tmp_path / "x.safetensors", "--dense", "--size", "48", "--dtype", "float16") == 0
    file = FeatureFile(tmp_path / "x.safetensors")
    assert file.shape == (256, 3, 3)
    crop = embed.CenterCrop(48, 48, "bilinear")
    name = "deeper/03.png"
    with torch.no_grad():
        expected = load_map(model, 48)(crop(decode((images / name).read_bytes()))[None])
    torch.testing.assert_close(file.read([name]), expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(file.read([name]), file.read(["01.png", name])[1:])
    assert (file.config["stride"], file.config["map"]) == (16, [3, 3])
    assert file.unreadable == {"04b.jpg"}
    with pytest.raises(ValueError, match=r"has no features of 04b\.jpg: it has those of images below /"):
        file.read(["04b.jpg"])


def test_an_interrupted_command_goes_on(model, images, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    assert run(model, images, whole) == 0
    write, batches = embed.FeatureWriter.write, []

    def interrupted(self, numbers, features, unreadable=()):
        if len(batches) == 1:
            raise OSError("the disk is gone")
        batches.append(numbers)
        write(self, numbers, features, unreadable)

    with monkeypatch.context() as patch:
        patch.setattr(embed.FeatureWriter, "write", interrupted)
        assert run(model, images, broken) == 1
    assert not broken.exists()
    with pytest.raises(ValueError, match=r"partial is not complete: run its `slotcon-hub embed` again"):
        FeatureFile(tmp_path / "broken.safetensors.partial")
    assert run(model, images, broken, "--dtype", "float16") == 1
    assert (
        "partial was begun with other images or settings: go on with those, or remove it" in capsys.readouterr().err
    )
    monkeypatch.setattr(
        embed.FeatureWriter,
        "write",
        lambda self, numbers, *rest: batches.append(numbers) or write(self, numbers, *rest),
    )
    assert run(model, images, broken) == 0
    assert "3 of 8 images are in " in capsys.readouterr().out
    readable = [i for i, name in enumerate(FeatureFile(whole).names) if name != "04b.jpg"]
    assert sorted(number for batch in batches for number in batch) == readable  # each once
    assert broken.read_bytes() == whole.read_bytes()


def test_what_no_call_can_read_is_never_a_file(model, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    for reason in ("Pillow does not read this format", "(by an earlier call)"):
        assert run(model, tmp_path / "images", tmp_path / "x.safetensors") == 1
        err = capsys.readouterr().err
        assert err.count(reason) == 2
        assert "none of the 2 images can be read: give other images" in err
    assert not (tmp_path / "x.safetensors").exists()


def test_a_full_disk_is_met_before_the_work(model, images, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert run(model, images, tmp_path / "x.safetensors") == 1
    assert "x.safetensors cannot be made, of 0.000 GB (No space left on device)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_processes_write_the_same_file(model, images, tmp_path):
    assert run(model, images, tmp_path / "one.safetensors", "--dense", "--size", "64") == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    words = [
        "--model",
        model,
        "--images",
        images,
        "--device",
        "cpu",
        "--batch-size",
        "3",
        "--dense",
        "--size",
        "64",
    ]
    command = [*launch, Path(sys.executable).with_name("slotcon-hub"), "embed", *words]
    subprocess.run([*command, "--output", tmp_path / "two.safetensors"], check=True, capture_output=True)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "slotcon_nope"], "there are no weights 'slotcon_nope'"),
        (["--images", "/nowhere"], "there is no folder /nowhere"),
        (["--output", "/"], "/ is a folder: name a file in it"),
        (["--output", "there"], "there already exists: add --force to replace it"),
    ],
)
def test_errors_are_one_sentence(model, images, tmp_path, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("mine")
    assert run(model, images, "x", *options) == 1
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with pytest.raises(SystemExit):
        run(model, images, "x", "--size", "64")
    assert "--size is of maps: add --dense, or leave it out" in capsys.readouterr().err


def test_replacing(model, images, tmp_path):
    (tmp_path / "x").write_text("mine")
    assert run(model, images, tmp_path / "x", "--force") == 0
    assert FeatureFile(tmp_path / "x").shape == (256,)


@pytest.mark.parametrize("content", [b"", b"no file of tensors", None])
def test_other_files_are_refused(tmp_path, content):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "x")
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=r"x is no file of `slotcon-hub embed` \(.*\): make one") as error:
        FeatureFile(tmp_path / "x")
    assert "\n" not in str(error.value)

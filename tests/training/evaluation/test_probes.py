"""Probes: the neighbours against loops, and the commands on real folders, with one process and with two."""

import json
import re
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from launched import launched
from PIL import Image
from tiny import shaken

from slotcon_hub.models.saving import save_model
from training.evaluation.features import Features, Labeled, extract, recalibrate
from training.evaluation.knn import knn
from training.evaluation.linear import LinearProbe, linear
from training.evaluation.models import load
from training.tools.benchmark.memory import LiveBytes

CLASSES, TRAIN, TEST = 3, 13, 7  # images in all; they divide by neither processes nor batches


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of classes that differ in colour."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, number in {"train": TRAIN, "validation": TEST}.items():
        for i in range(number):
            place = folder / split / f"class{i % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 120, (40, 50, 3))
            pixels[..., i % CLASSES] += 130
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_model(timm.create_model("resnet10t", num_classes=0), folder, 32)
    return folder


@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_neighbours_vote_as_in_loops(chunk):
    torch.manual_seed(1)
    train = Features.of(1 + torch.randn(31, 20) / 3, torch.arange(31) % 4)  # so close that many matter
    test = Features.of(1 + torch.randn(40, 20) / 3, torch.arange(40) % 4)
    ks = (1, 3, 10, 31, 200)
    found = knn(train, test, Accelerator(cpu=True), ks=ks, chunk=chunk)
    for k in ks:
        right = 0
        for query, label in zip(test.values(), test.labels, strict=True):
            cosines = [float(torch.cosine_similarity(query, other, dim=0)) for other in train.values()]
            nearest = sorted(range(31), key=lambda i: -cosines[i])[:k]
            votes = [0.0] * 4
            for i in nearest:
                votes[int(train.labels[i])] += float(np.exp(cosines[i] / 0.07))
            right += max(range(4), key=votes.__getitem__) == int(label)
        assert found[k] == pytest.approx(right / 40), k
    assert len(set(found.values())) > 1


SHARED = """
import os
import torch
from accelerate import Accelerator
from training.evaluation.features import Features
from training.evaluation.knn import knn

torch.manual_seed(1)
train, test = (Features.of(torch.randn(n, 20), torch.arange(n) % 4) for n in (31, 45))
accelerator = Accelerator()
calls, product = [], torch.Tensor.__matmul__
torch.Tensor.__matmul__ = lambda a, b: calls.append(len(a)) or product(a, b)
found = knn(train, test, accelerator, ks=(1, 3, 10), chunk=10)
assert sum(calls) == {(0, 1): 45, (0, 2): 25, (1, 2): 20}[accelerator.process_index, accelerator.num_processes]
os.write(1, f'{found}\\n'.encode())  # in one piece, beside the other process
"""


def test_processes_share_what_neighbours_classify(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    one, two = (
        launched(tmp_path / str(processes), [tmp_path / "shared.py"], processes=processes) for processes in (1, 2)
    )
    assert len(set(eval(one).values())) > 1
    said = [line for line in two.splitlines() if not line.startswith("[Gloo]")]
    assert said == 2 * one.splitlines()


def test_a_linear_classifier_separates_what_can_be_separated():
    torch.manual_seed(0)
    labels = torch.arange(600) % 3
    values = torch.randn(600, 8) + 4 * torch.nn.functional.one_hot(labels, 8)
    separable, noise = Features.of(values, labels), Features.of(torch.randn(600, 8), labels)
    asked, accelerator = [], Accelerator(cpu=True)
    remember = lambda epoch: asked.append(epoch) or separable  # noqa: E731
    assert linear(remember, separable, accelerator, epochs=20, batch_size=64) > 0.97
    assert asked == list(range(20))
    other = Features.of(torch.randn(600, 8), labels)
    assert linear(lambda _: noise, other, accelerator, epochs=5, batch_size=64) < 0.45


TRAINED = """
import os
import torch
from accelerate import Accelerator
from training.evaluation.features import Features
from training.evaluation.linear import linear

torch.manual_seed(1)
train, test = (Features.of(torch.randn(n, 20), torch.arange(n) % 4) for n in (31, 45))
accelerator = Accelerator()
steps, step = [], torch.optim.SGD.step
torch.optim.SGD.step = lambda *a, **k: steps.append(1) or step(*a, **k)
found = linear(lambda _: train, test, accelerator, epochs=3, batch_size=10)
assert len(steps) == (12 if accelerator.is_main_process else 0)
os.write(1, f'{found}\\n'.encode())  # in one piece, beside the other process
"""


def test_the_classifier_is_trained_once(tmp_path):
    (tmp_path / "trained.py").write_text(TRAINED)
    one, two = (
        launched(tmp_path / str(processes), [tmp_path / "trained.py"], processes=processes) for processes in (1, 2)
    )
    said = [float(line) for line in two.splitlines() if line.startswith("0.")]
    assert said == 2 * [float(line) for line in one.splitlines() if line.startswith("0.")]
    assert len(said) == 2


def test_features_are_each_image_once_and_in_order(data, model):
    accelerator, images = Accelerator(cpu=True), Labeled(str(data), "train")
    net = load(str(model))
    found = extract(net, images, accelerator, batch_size=4, workers=0)
    assert found.values().shape == (TRAIN, 512)
    assert found.labels.bincount().tolist() == [5, 4, 4]
    images.prepare(net)
    with torch.no_grad():
        expected = torch.cat([net(images[i][1][None]) for i in range(TRAIN)])
    torch.testing.assert_close(
        found.directions.float(), torch.nn.functional.normalize(expected), rtol=2**-11, atol=1e-6
    )
    torch.testing.assert_close(found.norms, expected.norm(dim=1))
    torch.testing.assert_close(found.values(), expected, rtol=2**-10, atol=1e-5)
    first, again, other = (
        extract(net, images, accelerator, epoch=epoch, batch_size=size, workers=0).values()
        for epoch, size in ((1, 4), (1, 5), (2, 4))
    )
    torch.testing.assert_close(first, again, rtol=2**-10, atol=1e-5)  # last bits of float16
    assert (first - other).abs().amax() > 1e-3
    assert (first - found.values()).abs().amax() > 1e-3


def test_features_of_any_scale_are_kept_within_half_precision():
    torch.manual_seed(0)
    values = torch.randn(6, 50) * torch.tensor([1e-15, 1e-6, 1, 1e6, 1e15, 0])[:, None]  # float16 ends at 65,504
    kept = Features.of(values, torch.arange(6))
    error = (kept.values() - values).abs().amax(1) / values.norm(dim=1).clamp(min=1e-38)
    assert (error < 2**-11).all()
    assert kept.finite().all()
    for bad in (torch.nan, torch.inf):
        values[2, 3] = bad
        assert Features.of(values, torch.arange(6)).finite().tolist() == [True, True, False, True, True, True]
    some = kept.select(torch.tensor([4, 1]))
    torch.testing.assert_close(some.values(), kept.values()[[4, 1]])
    assert some.labels.tolist() == [4, 1]


def test_a_bank_is_in_memory_once(data, model):
    """At the size of ImageNet it is 5.2 GB: neither a copy nor the bank of the epoch before fits beside it."""
    net, images = load(f"local-dir:{model}"), Labeled(str(data), "train")
    small, large = ImagesTimes(images, 10), ImagesTimes(images, 30)
    peaks = []
    for part in (small, large):
        with LiveBytes() as tensors:
            extract(net, part, Accelerator(cpu=True), batch_size=4, workers=0)
        peaks.append(tensors.peak)
    bank = 2 * net.head_hidden_size * len(images) * (30 - 10)
    assert bank <= peaks[1] - peaks[0] <= 1.1 * bank

    before: list[weakref.ref] = []

    def features(epoch: int) -> Features:
        assert not before or before.pop()() is None
        made = Features.of(torch.randn(32, 8), torch.arange(32) % 2)
        before.append(weakref.ref(made))
        return made

    test = Features.of(torch.randn(8, 8), torch.arange(8) % 2)
    linear(features, test, Accelerator(cpu=True), epochs=3, batch_size=16)


class ImagesTimes(Labeled):
    """Labelled images, each of them several times."""

    def __init__(self, images: Labeled, times: int) -> None:
        self.one, self.times = images, times
        self.labels = images.labels.repeat(times)

    def __len__(self) -> int:
        return len(self.one) * self.times

    def __getitem__(self, index: int) -> tuple[int, object]:
        return index, self.one[index % len(self.one)][1]

    def prepare(self, model: object, epoch: int | None = None) -> None:
        self.one.prepare(model, epoch)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "ghostnet_050", "slotcon_nano_proto"])
def test_features_are_as_wide_as_the_model_makes_them(data, name):
    """Of these the pooled width is another than ``num_features``."""
    net = timm.create_model(name, num_classes=0).eval()
    net.pretrained_cfg = {**net.pretrained_cfg, "input_size": (3, 64, 64)}
    found = extract(net, Labeled(str(data), "train"), Accelerator(cpu=True), batch_size=4, workers=0)
    assert found.values().shape[1] == net(torch.zeros(2, 3, 64, 64)).shape[1] != net.num_features


def test_a_random_model_gets_statistics_of_the_images(data):
    net = load("resnet10t", pretrained=False)
    recalibrate(net, Labeled(str(data), "train"), torch.device("cpu"), batches=2, batch_size=4)
    assert not net.training
    assert net.bn1.num_batches_tracked == 2
    assert (net.bn1.running_mean != 0).any()


def test_an_unreadable_image_does_not_end_the_calibration(data, tmp_path, capfd):
    shutil.copytree(data, tmp_path / "data")
    bad, good = (Path(Labeled(str(tmp_path / "data"), "train").images.name(i)) for i in (3, 4))
    bad.write_bytes(b"no image")
    found, expected = (shaken(load("resnet10t", pretrained=False), 0) for _ in range(2))
    expected.load_state_dict(found.state_dict())
    recalibrate(found, Labeled(str(tmp_path / "data"), "train"), torch.device("cpu"), batch_size=TRAIN)
    assert capfd.readouterr().err.count(f"skipped: {bad} cannot be read") == 1
    shutil.copy(good, bad)
    recalibrate(expected, Labeled(str(tmp_path / "data"), "train"), torch.device("cpu"), batch_size=TRAIN)
    torch.testing.assert_close(found.state_dict(), expected.state_dict())


def test_two_processes_give_the_numbers_of_one(data, model, tmp_path):
    options = ["--models", model, "--data", data, "--batch-size", 4, "--workers", 0, "--baseline", "--output"]
    files = [tmp_path / f"{processes}.json" for processes in (1, 2)]
    for processes, file in enumerate(files, start=1):
        command = ["training.evaluation.knn", *options, file]
        said = launched(tmp_path / f"of {processes}", command, processes=processes)
        assert said.count("knn on") == 1
        assert "13 training and 7 test images, 3 classes" in " ".join(said.split())
    one, two = (json.loads(file.read_text()) for file in files)
    assert one["accuracy"] == two["accuracy"]
    assert set(one["accuracy"]) == {str(model), f"{model}, random"}
    assert set(one["accuracy"][str(model)]) == {"k = 10"}  # there are 13 images
    assert one["protocol"] == two["protocol"]
    protocol = one["protocol"]
    assert (protocol["train"], protocol["test"], protocol["classes"]) == (TRAIN, TEST, CLASSES)
    assert (protocol["k"], protocol["votes"]) == ([10, 20, 100, 200], "exp(cosine / 0.07) of pooled features")
    assert protocol["features"][str(model)]["channels"] == 512
    assert protocol["features"][str(model)]["preprocessing"]["input_size"] == [3, 32, 32]
    assert one["settings"]["test_split"] == "validation"


def test_two_processes_train_the_classifier_of_one(data, model, tmp_path):
    options = ["--models", model, "--data", data, "--batch-size", 4, "--epochs", 2, "--workers", 0, "--output"]
    files = [tmp_path / f"{processes}.json" for processes in (1, 2)]
    for processes, file in enumerate(files, start=1):
        command = ["training.evaluation.linear", *options, file]
        said = launched(tmp_path / f"of {processes}", command, processes=processes)
        assert said.count("linear on") == 1
        assert said.count("classifier:   0%") == 1
    one, two = (json.loads(file.read_text()) for file in files)
    assert one["accuracy"] == two["accuracy"]
    assert one["protocol"] == two["protocol"]
    assert one["protocol"]["training_images"] == "centre crops"
    assert one["protocol"]["learning_rate"] == "0.1 x batch / 256"


def test_the_linear_command_augments_when_asked_to(data, model, tmp_path):
    options = ["--models", model, "--data", data, "--epochs", 3, "--workers", 0, "--mixed-precision", "bf16"]
    command = ["training.evaluation.linear", *options, "--augment", "--output", tmp_path / "found.json"]
    launched(tmp_path / "linear", command)
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0 <= found["accuracy"][str(model)]["linear"] <= 1
    assert found["settings"]["augment"] is True
    assert found["protocol"]["training_images"].startswith("random resized crops")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--data": "/nowhere"}, "there is no folder /nowhere"),
        ({"--models": "slotcon_r99"}, "there are no weights 'slotcon_r99'"),
        ({"--models": "resnet10t.nothing"}, "resnet10t.nothing could not be loaded"),
        ({"--test-split": "dev"}, "no folder for the split 'dev'"),
        ({"--output": f"{__file__}/found.json"}, "found.json cannot be created in it: choose another --output"),
        ({"--output": "/"}, "/ is a folder: name a JSON file in it, --output /results.json"),
    ],
)
def test_errors_are_one_sentence(data, model, monkeypatch, change, sentence):
    from training.evaluation import knn as module
    from training.evaluation.probes import Probe, run

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {"--models": str(model), "--data": str(data), "--workers": "0", **change}
    monkeypatch.setattr(sys, "argv", ["knn", *(word for pair in options.items() for word in pair)])
    with pytest.raises(SystemExit) as error:
        run("knn", "", Probe, module.measure, module.protocol)
    assert str(error.value).startswith("error: ")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"models": ()}, "--models: name at least one"),
        ({"batch_size": 0}, "--batch-size 0: give at least 1"),
        ({"epochs": 0}, "--epochs 0: give at least 1"),
        ({"train_batch_size": 0}, "--train-batch-size 0: give at least 1"),
    ],
)
def test_impossible_numbers(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        LinearProbe(**{"models": ("resnet10t",), "data": "", **change})


def test_an_image_that_cannot_be_read_is_named(tmp_path, model, capsys):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / f"{name}.png")
    whole = extract(load(str(model)), Labeled(str(tmp_path), "train"), Accelerator(cpu=True), workers=0)
    (tmp_path / "train" / "a" / "a.png").write_bytes(b"no image")
    found = extract(
        load(str(model)), Labeled(str(tmp_path), "train"), Accelerator(cpu=True), batch_size=1, workers=1
    )
    assert found.labels.tolist() == [1]  # one among few is left out, with its label
    torch.testing.assert_close(found.values(), whole.values()[1:], rtol=2**-10, atol=1e-5)
    assert re.search(r"skipped: /.*a\.png cannot be read: cannot identify image file", capsys.readouterr().err)
    (tmp_path / "train" / "b" / "b.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"^/.*b\.png cannot be read: .*2 of 2 images are unreadable: repair or remove them"
    ):
        extract(load(str(model)), Labeled(str(tmp_path), "train"), Accelerator(cpu=True), workers=0)


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000)])
def test_a_strip_is_cut_before_it_is_resized(tmp_path, model, size, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", size).save(tmp_path / "train" / name / "strip.png")
    images = Labeled(str(tmp_path), "train")
    images.prepare(load(str(model)))
    sizes = []
    transform = images.transform
    images.transform = lambda image: sizes.append(image.size) or transform(image)
    assert images[0][1].shape[0] == 3
    assert max(*sizes[0]) == 4


def test_sixteen_bits_of_grey_are_not_clipped(tmp_path, model):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 128 << 8, np.uint16)).save(tmp_path / "train" / name / "grey.png")
    images = Labeled(str(tmp_path), "train")
    images.prepare(load(str(model)))
    mean, std = (torch.tensor(load(str(model)).pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(images[0][1], ((128 / 255 - mean) / std).expand(3, 32, 32))


def test_labels_must_be_there(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has no class: put it into a folder"):
        Labeled(str(tmp_path), "train")

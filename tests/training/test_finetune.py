"""The fine-tuning examples: real images on the disk, real runs, and what they save."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
import tyro
from accelerate.state import AcceleratorState, GradientState, PartialState
from image_files import encode
from launched import launched
from PIL import Image
from safetensors.torch import load_file, load_model, save_file
from torch import nn

from slotcon_hub import SlotCon, SlotConConfig
from slotcon_hub.export.teacher import export
from slotcon_hub.models.saving import save_classifier
from training import finetune, finetune_segmentation
from training.data.masks import LabeledImages
from training.engine.errors import RunError, one_line_errors
from training.evaluation.features import Labeled
from training.evaluation.segmentation import evaluate
from training.transfer.segmenter import Segmenter

# timm's data sets leave it to the garbage collector to close files.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROOT = Path(__file__).parents[2]
COLORS = {"blue": (40, 60, 200), "green": (30, 170, 60), "red": (200, 50, 30)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported backbone of a SlotCon that has not learned anything, for images of 32 pixels."""
    torch.manual_seed(1)
    slotcon = SlotCon("slotcon_nano", SlotConConfig(num_prototypes=4, hidden_dim=16, out_dim=8))
    return export(slotcon, tmp_path_factory.mktemp("run") / "export", input_size=32, trained="Not.") / "backbone"


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Accelerate on the CPU, with a state of its own; nothing of ``datasets`` outside of the test's folder."""
    states = (AcceleratorState, GradientState, PartialState)
    for state in states:
        state._reset_state()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    for state in states:
        state._reset_state()


def noisy(color: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    return (rng.normal(size=(40, 40, 3)) * 20 + color).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes that differ in color: 24 images to train on, 7 to measure on."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 7)):
        for i in range(count):
            name = sorted(COLORS)[i % 3]
            (tmp_path / "data" / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy(COLORS[name], rng)).save(tmp_path / "data" / split / name / f"{i}.png")
    return tmp_path / "data"


def parquet(folder: Path, target: Path) -> Path:
    """The same images as Parquet files."""
    target.mkdir()
    for split, table in datasets.load_dataset(str(folder)).items():
        table.to_parquet(target / f"{split}.parquet")
    return target


def classify(*args: object, workers: int = 0) -> None:
    with one_line_errors(RunError, interrupted=""):
        tyro.cli(finetune.main, args=[*map(str, args), "--workers", str(workers)])


def right_answers(model: nn.Module, folder: Path) -> int:
    """Number of held-out images that a model names rightly, one by one."""
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    images = [(path, sorted(COLORS).index(path.parent.name)) for path in sorted(folder.glob("val/*/*.png"))]
    with torch.no_grad():
        return sum(int(model(transform(Image.open(path))[None]).argmax()) == label for path, label in images)


def test_it_learns_and_saves_what_timm_loads(folder, backbone, tmp_path, capsys, monkeypatch):
    kept = []
    save = finetune.save_classifier
    monkeypatch.setattr(finetune, "save_classifier", lambda net, *a: kept.append(net) or save(net, *a))
    options = ["--model", f"local-dir:{backbone}", "--epochs", 6, "--batch-size", 4, "--lr", 3e-3]
    classify("--data", folder, "--output", tmp_path / "tuned", *options)
    out = capsys.readouterr().out
    reported = re.findall(r"epoch (\d): accuracy (\S+) of (\d+) images", out)
    assert [(epoch, total) for epoch, _, total in reported] == [(str(i), "7") for i in range(1, 7)]
    assert float(reported[-1][1]) >= 6 / 7 - 1e-3

    model = said_to_load(out)["model"]
    assert model.pretrained_cfg["label_names"] == sorted(COLORS)
    assert right_answers(model, folder) == round(float(reported[-1][1]) * 7)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), kept[0].eval()(x), rtol=0, atol=0)


def test_it_learns_from_a_share_of_each_class(folder, backbone, tmp_path, monkeypatch):
    seen = set()
    read = Labeled.__getitem__

    def remember(self, index):
        seen.add(self.images.name(index))
        return read(self, index)

    monkeypatch.setattr(Labeled, "__getitem__", remember)
    options = ["--model", f"local-dir:{backbone}", "--epochs", 2, "--batch-size", 4, "--share", 0.25]
    classify("--data", folder, "--output", tmp_path / "tuned", *options)
    trained = [Path(name).parts[-2] for name in seen if "train" in Path(name).parts]
    assert Counter(trained) == dict.fromkeys(COLORS, 2)


def said_to_load(out: str) -> dict[str, Any]:
    """What the printed lines give."""
    found: dict[str, Any] = {}
    exec(out.split("Load it by\n")[1], found)
    return found


PLAIN = """
import json, sys, timm, torch
net = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
assert "slotcon_hub" not in sys.modules
print(json.dumps([net(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)).tolist(), net.pretrained_cfg]))
"""


@pytest.mark.parametrize("name", ["slotcon_nano", "slotcon_r18", "slotcon_nano_proto", "resnet10t"])
def test_what_is_saved_loads_in_timm_alone_and_claims_nothing(tmp_path, name):
    net = timm.create_model(name, pretrained="nano" in name)
    net.reset_classifier(3)
    lines = save_classifier(net, tmp_path / "tuned", ["a", "b", "c"])
    x = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    expected = net.eval()(x).detach()
    torch.testing.assert_close(said_to_load(f"Load it by\n{lines}")["model"](x), expected)
    assert ("slotcon_hub" in lines) == (name == "slotcon_nano_proto")
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert not {"tag", "license", "description", "origin_url", "paper_ids"} & config["pretrained_cfg"].keys()
    if "slotcon_hub" not in lines:
        call = [sys.executable, "-c", PLAIN, str(tmp_path / "tuned")]
        found, cfg = json.loads(subprocess.run(call, capture_output=True, check=True, cwd=tmp_path).stdout)
        torch.testing.assert_close(torch.tensor(found), expected)
        assert cfg["input_size"] == list(net.pretrained_cfg["input_size"])
        assert cfg["label_names"] == ["a", "b", "c"]


def test_an_unreadable_image_is_named_and_left_out(folder, backbone, tmp_path, capfd):
    damaged = [sorted((folder / part).glob("*/*.png"))[2] for part in ("train", "val")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:50])
    options = ["--data", folder, "--model", f"local-dir:{backbone}", "--epochs", 2, "--batch-size", 4]
    classify(*options, "--output", tmp_path / "tuned", workers=1)
    said = capfd.readouterr()
    assert re.findall(r"epoch \d: accuracy \S+ of (\d+) images", said.out) == ["6", "6"]
    named = [line for line in said.err.splitlines() if "skipped: " in line]
    assert len(named) == 2
    assert all(f"{path} cannot be read: " in said.err for path in damaged)
    other = next(path for path in (folder / "train").glob("*/*.png") if path not in damaged)
    other.write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        classify(*options, "--output", tmp_path / "none", workers=1)
    assert re.fullmatch(
        r"error: /\S+png cannot be read: [^\n]*; at least 2 of 24 images are unreadable: repair or remove them",
        str(stop.value),
    )


def test_it_starts_from_the_pretrained_weights(folder, backbone, tmp_path):
    for model, same in ((["--model", backbone.parent.parent], True), (["--scratch"], False)):  # of a run
        output = tmp_path / f"tuned-{same}"
        classify("--data", folder, "--output", output, "--epochs", 1, "--batch-size", 24, "--lr", 0, *model)
        before, after = load_file(backbone / "model.safetensors"), load_file(output / "model.safetensors")
        weights = [name for name in before if name.endswith("weight")]
        assert all(torch.equal(before[name], after[name]) for name in weights) == same


def test_every_layer_learns_at_its_own_rate(folder, backbone, tmp_path, monkeypatch):
    rates: list[list[float]] = []
    made = []
    create = timm.optim.create_optimizer_v2

    def watched(net: nn.Module, *args: object, **kwargs: object) -> torch.optim.Optimizer:
        names = {id(p): name for name, p in net.named_parameters()}
        optimizer = create(net, *args, **kwargs)
        made.extend([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
        optimizer.register_step_pre_hook(lambda o, *_: rates.append([g["lr"] for g in o.param_groups]))
        return optimizer

    monkeypatch.setattr(timm.optim, "create_optimizer_v2", watched)
    options = ["--model", f"local-dir:{backbone}", "--epochs", 2, "--batch-size", 2, "--layer-decay", 0.5]
    classify("--data", folder, "--output", tmp_path / "tuned", *options)
    assert len(rates) == 24

    def rate(step: int, name: str) -> float:
        (value,) = (lr for lr, names in zip(rates[step], made, strict=True) if name in names)
        return value

    for step in (1, 10, 23):
        stem, deep, head = (rate(step, name) for name in ("conv1.0.weight", "layer4.0.conv1.weight", "fc.weight"))
        assert 0 < stem < deep == pytest.approx(head / 2)
    assert max(rate(step, "fc.weight") for step in range(24)) <= 1e-3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data", "{tmp}/nowhere"], "there is no folder .*/nowhere"),
        (["--data", "{data}/train"], "has no folder for the split 'validation'"),
        (["--data", "{flat}", "--scratch"], "has no class: put it into a folder"),
        (["--data", "{data}", "--share", "0"], r"--share 0.0 must be a fraction in \(0, 1\]"),
        (["--data", "{data}", "--output", "{data}"], "data exists: choose another --output"),
        (["--data", "{data}", "--output", "{flat}/val/0.png/x"], "0.png is a file, so .*: choose another"),
        (["--data", "{data}", "--model", "slotcon_r34"], "No pretrained weights exist for slotcon_r34"),
        (["--data", "{data}", "--model", "slotcon_r5000"], "there are no weights 'slotcon_r5000'"),
        (["--data", "{data}", "--model", "local-dir:{tmp}/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_end_in_one_sentence(folder, tmp_path, args, words):
    for split in ("train", "val"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "flat" / split / "0.png")
    args = [a.format(tmp=tmp_path, data=folder, flat=tmp_path / "flat") for a in args]
    with pytest.raises(SystemExit, match=words) as stop:
        classify("--output", tmp_path / "tuned", *args)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "tuned").exists()


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Images of two colors beside each other, with masks; a row of pixels has no label."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for part in ("images", "masks"):
            (tmp_path / "scenes" / split / part).mkdir(parents=True)
        for i in range(count):
            left, right = rng.permutation(3)[:2]
            mask = np.where(np.arange(40) < rng.integers(12, 28), left, right).astype(np.uint8)
            mask = np.repeat(mask[None], 40, axis=0)
            colors = np.stack([noisy(color, rng) for color in COLORS.values()])
            image = np.take_along_axis(colors, mask[None, ..., None].astype(int), axis=0)[0]
            mask[:2] = 255
            Image.fromarray(image).save(tmp_path / "scenes" / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / "scenes" / split / "masks" / f"{i}.png")
    return tmp_path / "scenes"


def halves(scenes: Path) -> list[object]:
    return ["--train", scenes / "train", "--val", scenes / "val"]


def segment(*args: object) -> None:
    tyro.cli(finetune_segmentation.main, args=[*map(str, args), "--workers", "0"])


def measured(output: Path, scenes: Path) -> str:
    """What a saved network should have said of itself."""
    net = Segmenter("slotcon_nano", 3).eval()
    load_model(net, output / "model.safetensors")
    images = LabeledImages(scenes / "val" / "images", scenes / "val" / "masks")
    found = evaluate(net, images, 3, 3, match=range(3))
    return f"held-out mIoU {found.miou:.3f}, pixel accuracy {found.pixel_accuracy:.3f}"


def test_segmentation_learns_and_saves(scenes, backbone, tmp_path, capsys):
    options = ["--classes", 3, "--model", f"local-dir:{backbone}", "--epochs", 15, "--batch-size", 4]
    segment(*halves(scenes), "--output", tmp_path / "tuned", *options)
    out = capsys.readouterr().out
    (miou,) = re.findall(r"held-out mIoU (\S+),", out)
    assert float(miou) > 0.8
    assert measured(tmp_path / "tuned", scenes) in out.splitlines()
    net = said_to_load(out.replace(f"local-dir:{backbone}", "slotcon_nano"))["net"]
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 16, 16)
    state = load_file(tmp_path / "tuned" / "model.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_two_processes_count_every_image_once(folder, scenes, backbone, tmp_path):
    tables = parquet(folder, tmp_path / "tables")
    options = ["--model", f"local-dir:{backbone}", "--epochs", 1, "--batch-size", 4, "--workers", 0]
    masks = [*halves(scenes), "--classes", 3]
    said = launched(
        tmp_path / "two",
        [ROOT / "training/finetune.py", "--data", tables, "--output", tmp_path / "tuned", *options],
        [ROOT / "training/finetune_segmentation.py", *masks, "--output", tmp_path / "net", *options],
        processes=2,
    )
    named, segmented = re.findall("epoch 1: .*|held-out .*", said)
    model = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True).eval()
    assert named == f"epoch 1: accuracy {right_answers(model, folder) / 7:.3f} of 7 images"
    assert segmented == measured(tmp_path / "net", scenes)


def test_unreadable_images_and_masks_are_named_and_left_out(scenes, backbone, tmp_path, capfd):
    damaged = [scenes / name for name in ("train/images/3.png", "val/masks/2.png")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:50])
    options = ["--model", f"local-dir:{backbone}", "--epochs", 2, "--batch-size", 4, "--classes", 3]
    segment(*halves(scenes), "--output", tmp_path / "tuned", *options)
    said = capfd.readouterr()
    for part in ("images", "masks"):
        (scenes / "val" / part / "2.png").unlink()
    assert measured(tmp_path / "tuned", scenes) in said.out.splitlines()
    assert len([line for line in said.err.splitlines() if "skipped: " in line]) == 2
    assert f"{damaged[0]} cannot be read: " in said.err
    assert f"{damaged[1]} cannot be read as a mask: " in said.err


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_label_beyond_the_classes_is_refused_before_the_work(scenes, tmp_path, part):
    options = ["--output", tmp_path / "tuned", "--scratch", "--classes", 2]
    for mask in [*(scenes / "train/masks").iterdir(), *(scenes / "val/masks").iterdir()]:
        labels = np.array(Image.open(mask))
        Image.fromarray(np.where(labels == 2, 1, labels)).save(mask)
    (scenes / part / "masks/4.png").write_bytes(encode(Image.new("L", (40, 40), 2), "PNG"))
    with pytest.raises(
        SystemExit, match=rf"error: .*{part}/masks/4\.png has the unknown label 2: valid are 0 to 1, .* name more"
    ):
        segment(*halves(scenes), *options)
    assert not (tmp_path / "tuned").exists()


def test_segmentation_starts_from_the_pretrained_weights(scenes, backbone, tmp_path):
    for model, same in ((["--model", backbone.parent.parent], True), (["--scratch"], False)):  # of a run
        output = tmp_path / f"tuned-{same}"
        segment(*halves(scenes), "--classes", 3, "--output", output, "--epochs", 1, "--lr", 0, *model)
        before, after = load_file(backbone / "model.safetensors"), load_file(output / "model.safetensors")
        weights = [name for name in before if name.endswith("weight")]
        assert all(torch.equal(before[name], after[f"0.{name}"]) for name in weights) == same


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--train", "{tmp}/nowhere"], "there (is|are) no .*/nowhere/images"),
        (["--val", "{bare}"], "no mask .*bare/masks"),
        (["--output", "{data}"], "scenes exists: choose another --output"),
        (["--output", "{bare}/images/0.png/x"], "0.png is a file, so .*: choose another"),
        (["--model", "slotcon_r34"], "No pretrained weights exist for slotcon_r34"),
    ],
)
def test_mistakes_with_masks_end_in_one_sentence(scenes, tmp_path, args, words):
    for part in ("images", "masks"):
        (tmp_path / "bare" / part).mkdir(parents=True)
    for path in (tmp_path / "bare/images/0.png", tmp_path / "bare/masks/1.png"):
        Image.new("L", (8, 8)).save(path)
    args = [a.format(tmp=tmp_path, data=scenes, bare=tmp_path / "bare") for a in args]
    with pytest.raises(SystemExit, match=words) as stop:
        segment(*halves(scenes), "--classes", 3, "--output", tmp_path / "tuned", *args)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "tuned").exists()


def test_weights_that_do_not_fit_are_refused(folder, scenes, backbone, tmp_path):
    """Which timm alone does not do for another number of classes."""
    (tmp_path / "other").mkdir()
    state = load_file(backbone / "model.safetensors")
    save_file({f"net.{name}": value for name, value in state.items()}, tmp_path / "other/model.safetensors")
    (tmp_path / "other/config.json").write_text((backbone / "config.json").read_text())
    other = ["--model", f"local-dir:{tmp_path}/other", "--output", tmp_path / "tuned"]
    for start in (
        lambda: classify("--data", folder, *other),
        lambda: segment(*halves(scenes), "--classes", 3, *other),
    ):
        with pytest.raises(SystemExit, match=r"error: Error.* in loading state_dict .* Missing key") as stop:
            start()
        assert "\n" not in str(stop.value)


@pytest.mark.parametrize("script", [finetune, finetune_segmentation])
def test_an_example_is_read_in_a_minute(script, capsys):
    text = Path(script.__file__).read_text()
    assert len(text.splitlines()) <= 78
    with pytest.raises(SystemExit):
        tyro.cli(script.main, args=["--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--output", "--model", "--scratch", "--lr"))

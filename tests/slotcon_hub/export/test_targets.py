"""The command `export`: what it writes is loaded by the lines that it prints, or nothing is written."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from checkpoint_files import SMALL, one_sentence
from tiny import shaken
from torch import Tensor, nn

from slotcon_hub import SlotCon
from slotcon_hub.cli import main
from slotcon_hub.convert import to_detectron2
from slotcon_hub.export.targets import TARGETS, save_as
from slotcon_hub.export.teacher import export
from slotcon_hub.models.importing import import_checkpoint
from slotcon_hub.models.loading import load
from slotcon_hub.models.saving import save_classifier
from slotcon_hub.weights import store

SIDE = 64


@pytest.fixture(scope="module")
def slotcon() -> SlotCon:
    torch.manual_seed(0)
    return shaken(SlotCon("slotcon_r18", SMALL), 0.02).eval()


@pytest.fixture(scope="module")
def folder(slotcon: SlotCon, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(slotcon, tmp_path_factory.mktemp("run") / "export", input_size=SIDE, trained="In a test.")


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    slotcon = shaken(SlotCon("slotcon_nano", SMALL), 0.02)
    return export(slotcon, tmp_path_factory.mktemp("nano") / "export", input_size=SIDE, trained="In a test.")


@pytest.fixture(autouse=True)
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, and an empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def images() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Path, str]:
    """The path that the command has written, and the lines that load it."""
    assert main(["export", *map(str, arguments)]) == 0
    first, _, usage = capsys.readouterr().out.partition("\n\n")
    *_, line = first.splitlines()  # what comes before it is of some versions of onnxscript
    return Path(line.removesuffix(" is written; load it by")), usage


PARTS = ["backbone", "prototypes"]


@pytest.mark.parametrize("part", PARTS)
def test_torchvision(folder, slotcon, here, capsys, part):
    path, usage = run(capsys, folder / part, "--to", "torchvision")
    assert [p.name for p in here.iterdir()] == [str(path)] == [f"{part}.torchvision.pth"]
    scope: dict[str, Any] = {}
    exec(usage, scope)
    model = scope["model"].eval()
    model.fc = nn.Identity()
    with torch.no_grad():
        expected = slotcon.teacher.backbone(images()).mean((2, 3))
        torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)
    assert set(model.state_dict()) == set(torch.load(path, weights_only=True))


def test_detectron2_would_not_read_another_suffix(folder, here, capsys):
    assert main(["export", str(folder), "--to", "detectron2", "--output", "weights"]) == 1
    assert "its suffix is not .pkl: add it" in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize("part", PARTS)
def test_detectron2(folder, slotcon, capsys, part):
    path, usage = run(capsys, folder / part, "--to", "detectron2")
    assert path.name == f"{part}.detectron2.pkl"
    found, expected = pickle.loads(path.read_bytes()), to_detectron2(slotcon.teacher.backbone.state_dict())
    assert found.keys() == expected.keys()
    assert found["model"].keys() == expected["model"].keys()
    assert all(np.array_equal(found["model"][key], value) for key, value in expected["model"].items())
    cfg = Settings()
    exec(usage, {"cfg": cfg})
    model = vars(cfg.MODEL)
    assert model["WEIGHTS"] == str(path)
    assert vars(cfg.INPUT) == {"FORMAT": "RGB"}
    assert vars(model["RESNETS"]) == {"STRIDE_IN_1X1": False, "DEPTH": 18, "RES2_OUT_CHANNELS": 64}
    assert model["PIXEL_MEAN"] == pytest.approx([255 * mean for mean in (0.485, 0.456, 0.406)])
    assert model["PIXEL_STD"] == pytest.approx([255 * std for std in (0.229, 0.224, 0.225)])


def test_detectron2_gets_the_statistics_of_other_weights(here):
    net = timm.create_model("resnet18", num_classes=0)
    net.pretrained_cfg = {**net.pretrained_cfg, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1)}
    usage = save_as("detectron2", net, here / "net.pkl")
    assert usage.endswith("cfg.MODEL.PIXEL_STD = [127.5, 127.5, 127.5], [63.75, 127.5, 255]")


class Settings:
    """A tree of settings, as Detectron2's configuration is one."""

    def __getattr__(self, name: str) -> Any:
        value = Settings()
        setattr(self, name, value)
        return value


@pytest.mark.parametrize("part", PARTS)
def test_mmseg(folder, slotcon, capsys, part):
    path, usage = run(capsys, folder / part, "--to", "mmseg")
    scope: dict[str, Any] = {}
    exec(usage, scope)
    backbone = scope["model"]["backbone"]
    assert (backbone["type"], backbone["depth"], backbone["style"]) == ("ResNet", 18, "pytorch")
    assert backbone["init_cfg"] == {"type": "Pretrained", "checkpoint": f"{part}.mmseg.pth"}
    found, expected = torch.load(path, weights_only=True)["state_dict"], slotcon.teacher.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_timm(folder, slotcon, capsys):
    x = images()
    for part, expected in (
        ("backbone", slotcon.teacher.backbone(x).mean((2, 3))),
        ("prototypes", slotcon.teacher(x)[1].mean((2, 3))),
    ):
        path, usage = run(capsys, folder / part, "--to", "timm")
        assert sorted(p.name for p in path.iterdir()) == [store.CONFIG, store.WEIGHTS]
        scope: dict[str, Any] = {}
        exec(usage, scope)
        assert ("slotcon_hub" in scope) == (part == "prototypes")
        torch.testing.assert_close(scope["model"].eval()(x), expected, rtol=1e-4, atol=1e-5)
        assert scope["model"].pretrained_cfg["input_size"][-1] == SIDE
        modes = {p.stat().st_mode & 0o777 for p in path.iterdir()}
        assert len(modes) == 1  # safetensors' own would be for nobody else


@pytest.mark.parametrize("labels", [("cat", "dog", "<sea>"), ()])
def test_a_fine_tuned_classifier(here, capsys, labels):
    """timm gets it whole, with the names of its classes; the others get its backbone."""
    net = shaken(timm.create_model("slotcon_r18", num_classes=3), 0.02).eval()
    save_classifier(net, here / "tuned", labels)
    _, usage = run(capsys, here / "tuned", "--to", "timm")
    scope: dict[str, Any] = {}
    exec(usage, scope)
    torch.testing.assert_close(scope["model"].eval()(images()), net(images()))
    assert tuple(scope["model"].pretrained_cfg.get("label_names") or ()) == labels
    path, _ = run(capsys, here / "tuned", "--to", "torchvision")
    state = torch.load(path, weights_only=True)
    assert state.keys() == {key for key in net.state_dict() if not key.startswith("fc.")}


@pytest.mark.parametrize("name", ["slotcon_r18", "slotcon_nano", "slotcon_nano_proto"])
def test_timms_folder_is_that_of_timms_own_network(here, name):
    net = timm.create_model(name)
    save_as("timm", net, here / "net")
    config = json.loads((here / "net" / store.CONFIG).read_text())
    assert config["architecture"] == {"slotcon_r18": "resnet18", "slotcon_nano": "resnet10t"}.get(name, name)
    assert ("model_args" in config) == (name != "slotcon_r18")  # transformers refuses them
    found = timm.create_model(f"local-dir:{here / 'net'}", pretrained=True).state_dict()
    assert all(torch.equal(found[key], value) for key, value in net.state_dict().items())


def test_onnx(nano, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    options = ["--dense", "--size", SIDE // 2, "--opset", 20]
    path, usage = run(capsys, nano / "prototypes", "--to", "onnx", *options)
    assert path.name == "prototypes.onnx"
    assert onnx.load(path).opset_import[0].version == 20
    x = torch.randn(1, 3, 40, 48)
    scope: dict[str, Any] = {"images": x.numpy()}
    exec(usage, scope)
    with torch.no_grad():
        expected = load(str(nano / "prototypes"), global_pool="").eval()(x)
    torch.testing.assert_close(torch.from_numpy(scope["output"]), expected, rtol=1e-4, atol=1e-5)


def test_onnx_by_default(nano, here, capsys, monkeypatch):
    """The model's own output and size; the exporter is slow, so that here somebody else writes the file."""

    def told(net: Any, path: Path, *, size: int, opset: int) -> None:
        path.write_text(f"{net.global_pool.pool_type} {size} {opset}")

    monkeypatch.setattr("slotcon_hub.export.targets.to_onnx", told)
    path, _ = run(capsys, nano / "backbone", "--to", "onnx")
    assert (here / path).read_text() == f"avg {SIDE} 18"


@pytest.mark.parametrize("spelling", ["{}", "{}/", "local-dir:{}"])
def test_names_of_folders(folder, here, capsys, spelling):
    assert run(capsys, spelling.format(folder / "backbone"), "--to", "mmseg")[0].name == "backbone.mmseg.pth"


def test_names_of_the_store(folder, slotcon, here, capsys):
    import_checkpoint(folder, "slotcon_r18.mine")
    for name in ("slotcon_r18.mine", "slotcon_r18_proto.mine"):
        path, _ = run(capsys, name, "--to", "torchvision")
        assert path.name == f"{name}.torchvision.pth"
        found = torch.load(path, weights_only=True)
        assert torch.equal(found["conv1.weight"], slotcon.teacher.backbone.conv1.weight)


def test_what_is_there_stays_unless_forced(folder, nano, here, capsys):
    path = here / "sub" / "weights.pth"
    arguments = ["export", str(folder / "backbone"), "--to", "torchvision", "--output", str(path)]
    path.parent.mkdir()
    path.write_text("before")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "exists already: add --force" in error
    assert main(["export", str(nano / "backbone"), *arguments[2:], "--force"]) == 1
    assert "does not exist in torchvision" in capsys.readouterr().err
    assert path.read_text() == "before"
    assert main([*arguments, "--force"]) == 0
    assert torch.load(path, weights_only=True)
    assert list(path.parent.iterdir()) == [path]
    other = here / "folder"
    other.mkdir()
    (other / "kept").write_text("")
    assert main(["export", str(folder / "backbone"), "--to", "timm", "--output", str(other), "--force"]) == 0
    assert sorted(p.name for p in other.iterdir()) == [store.CONFIG, store.WEIGHTS]


def test_a_run_is_a_model(folder, here, capsys):
    path, _ = run(capsys, folder.parent, "--to", "timm", "--output", here / "alone")
    assert json.loads((path / store.CONFIG).read_text())["architecture"] == "resnet18"
    path, _ = run(capsys, folder.parent, "--to", "onnx", "--dense", "--output", here / "dense.onnx")
    assert len(onnxruntime.InferenceSession(path).get_outputs()[0].shape) == 4


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("slotcon_r18", "there are no weights 'slotcon_r18', and no such folder: `slotcon-hub list`"),
        ("slotcon_r50.nope", "there are no weights 'slotcon_r50.nope'"),
        ("resnet5000", "there are no weights 'resnet5000'"),
        ("no/such/folder", "there are no weights 'no/such/folder'"),
        ("slotcon_r50.in1k_100ep", "slotcon-hub import CHECKPOINT slotcon_r50.in1k_100ep"),
        (
            str(Path(__file__).parent),
            "holds no config.json: give the folder of a run, or of one model, such as export/backbone",
        ),
    ],
)
def test_what_cannot_be_loaded(here, capsys, name, problem):
    assert main(["export", name, "--to", "timm"]) == 1
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    one_sentence(ValueError(error.strip()))
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["a"],
        ["--to", "timm"],
        ["a", "--to", "tensorflow"],
        ["a", "--to", "timm", "--opset", "18"],
        ["a", "--to", "mmseg", "--size", "64"],
        ["a", "--to", "torchvision", "--dense"],
        ["a", "--to", "onnx", "--size", "big"],
        ["a", "--to", "onnx", "--size", "0"],
    ],
)
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    assert stop.value.code == 2
    assert "usage: slotcon-hub export" in capsys.readouterr().err


def test_the_help_tells_of_every_target(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {target} " in text for target in TARGETS)

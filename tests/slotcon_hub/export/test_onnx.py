import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import slotcon_hub.export.onnx
from slotcon_hub.export.onnx import to_onnx

SIDE = 64
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "features": ("slotcon_r18", {}),
    "pooled similarities": ("slotcon_nano_proto", {}),  # test_targets.py has the dense ones
}


@pytest.fixture(scope="module")
def runtime() -> Any:
    """ONNX Runtime, for the tests that cannot do without."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@dataclass
class Exported:
    """What was exported, as it was before and as it is after, and the file."""

    model: Any
    before: dict[str, Tensor]
    random: tuple[Tensor, Tensor]
    path: Path


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, runtime: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Models in half precision that are being trained; the exporter takes seconds for each."""
    name, args = MODELS[request.param]
    model = timm.create_model(name, **args).half().train()
    model.set_grad_checkpointing()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    path = to_onnx(model, tmp_path_factory.mktemp("onnx") / "new" / "model.onnx", size=SIDE)
    return Exported(model, before, (state, torch.get_rng_state()), path)


def run(runtime: Any, path: Path, x: Tensor) -> Tensor:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(["output"], {"images": x.numpy()})
    return torch.from_numpy(output)


@torch.no_grad()
def test_the_file_is_the_model_for_every_batch_and_size(exported, runtime):
    assert [f.name for f in exported.path.parent.iterdir()] == ["model.onnx"]
    model = copy.deepcopy(exported.model).float().eval()
    for shape in ((2, 3, SIDE, SIDE), (1, 3, SIDE, SIDE), (5, 3, 33, 130), (1, 3, 1, 1)):
        x = torch.randn(shape)
        torch.testing.assert_close(run(runtime, exported.path, x), model(x), rtol=1e-4, atol=1e-5)


def test_one_file_of_the_opset_asked_for_that_tells_nothing_of_the_machine(exported):
    import onnx

    proto = onnx.load(exported.path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 18)]
    written = exported.path.read_bytes()
    assert not any(word in written for word in (b".py", b"site-packages", str(Path.home()).encode() + b"/"))


def test_the_model_stays_as_it_is(exported):
    assert torch.equal(*exported.random)
    assert all(module.training for module in exported.model.modules())
    assert all(torch.equal(value, exported.before[key]) for key, value in exported.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "sides", "shapes"),
    [
        ("test_vit", ["height", "width"], [(2, 3, 32, 48), (1, 3, 96, 64)]),
        ("test_vit_relpos", [SIDE, SIDE], [(2, 3, SIDE, SIDE), (1, 3, SIDE, SIDE)]),
    ],
)
@torch.no_grad()
def test_a_model_of_patches_is_exported_for_all_sizes_that_it_takes(tmp_path, runtime, name, sides, shapes):
    model = timm.create_model(name, num_classes=0, img_size=SIDE, depth=1).eval()
    path = to_onnx(model, tmp_path / "model.onnx", size=SIDE)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, *sides]
    for shape in shapes:
        x = torch.randn(shape)
        torch.testing.assert_close(run(runtime, path, x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=rf"size=58, but .* takes images .*: use size={SIDE}$"):
        to_onnx(model, path, size=58)


class Gray(nn.Module):
    """A network of one channel, small enough for an export without a wait."""

    in_chans = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))


def test_other_channels_and_a_newer_opset(tmp_path, runtime):
    import onnx

    path = to_onnx(Gray(), str(tmp_path / "model.onnx"), size=32, opset=20)
    assert [(o.domain, o.version) for o in onnx.load(path).opset_import] == [("", 20)]
    x = torch.randn(1, 1, 40, 40)
    assert run(runtime, path, x).shape == (1, 2)


class ChangesInExport(nn.Module):
    """Exported, it is another function."""

    in_chans = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * (2.0 if torch.onnx.is_in_onnx_export() else 1.0)


class OneSize(nn.Module):
    in_chans = 3

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIDE * SIDE, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class BranchesOnSize(nn.Module):
    in_chans = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * (2.0 if x.shape[2] == SIDE else 1.0)


class BranchesOnBatch(nn.Module):
    """torch exports a batch of more than one, and takes that for all."""

    in_chans = 3

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :60].reshape(len(x), 3, 60, -1).mean((2, 3)) if len(x) > 1 else x[:, :, :61].mean((2, 3))


class NotANumber(nn.Module):
    in_chans = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * float("nan")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (ChangesInExport(), RuntimeError, r"ONNX Runtime disagrees with torch on \(1, 3, 64, 88\) images"),
        (NotANumber(), RuntimeError, "ONNX Runtime disagrees with torch"),
        (BranchesOnBatch(), RuntimeError, "ONNX Runtime disagrees with torch"),
        (BranchesOnSize(), RuntimeError, "torch cannot export BranchesOnSize for any batch and size"),
        (
            OneSize(),
            ValueError,
            r"OneSize does not accept 64 x 88 images \(.*\): export a network that takes any",
        ),
    ],
)
def test_nothing_is_written_that_does_not_agree(tmp_path, runtime, model, error, message):
    path = tmp_path / "model.onnx"
    path.write_text("the one before")
    with pytest.raises(error, match=message):
        to_onnx(model, path, size=SIDE)
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "the one before"


def test_an_opset_that_is_not_there_yet(tmp_path, runtime):
    with pytest.raises(ValueError, match="opset=99 is unknown here; torch wrote 18"):
        to_onnx(Gray(), tmp_path / "model.onnx", size=SIDE, opset=99)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"size": 0}, "size=0 must be positive"),
        ({"size": 64, "opset": 17}, "opset=17 is older than torch supports"),
    ],
)
def test_settings_are_checked_first(tmp_path, monkeypatch, args, message):
    monkeypatch.setattr(slotcon_hub.export.onnx.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=message):
        to_onnx(nn.Identity(), tmp_path / "folder" / "model.onnx", **args)
    assert not list(tmp_path.iterdir())


def test_without_the_libraries_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=r'onnx, onnxscript, onnxruntime: pip install ".*slotcon_hub\[onnx\]"'):
        to_onnx(nn.Identity(), tmp_path / "model.onnx", size=SIDE)

"""The entry points of torch.hub, from a plain checkout."""

import json
import os
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from slotcon_hub import SlotCon, SlotConConfig
from slotcon_hub.export.teacher import export
from slotcon_hub.models.importing import import_checkpoint

ROOT = Path(__file__).parents[1]
ENTRIES = sorted(set(timm.list_models("slotcon*")) - {"slotcon_proto"})
SMALL = SlotConConfig(num_prototypes=5, hidden_dim=12, out_dim=7)

# Without site, the link of an editable installation does not count: dependencies are there, this package is not.
BARE = """
import json, sys
root, packages = sys.argv[1], json.loads(sys.argv[2])
sys.path += packages
import torch
model = torch.hub.load(root, "slotcon_nano_proto", source="local", global_pool="", num_classes=5).eval()
assert root not in sys.path
assert sys.modules["slotcon_hub"].__file__.startswith(root)
assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 4, 4)
found = {
    "entries": torch.hub.list("someone/slotcon_hub:main", trust_repo=True),
    "help": torch.hub.help("someone/slotcon_hub:main", "slotcon_r50", trust_repo=True),
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def slotcon() -> SlotCon:
    torch.manual_seed(0)
    return SlotCon("slotcon_nano", SMALL)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "store"))
    return lambda *args, **kwargs: torch.hub.load(str(ROOT), *args, source="local", **kwargs)


def same(net: Any, state: dict[str, torch.Tensor], but: tuple[str, ...] = ()) -> None:
    found = net.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items() if not key.startswith(but or "?"))


def test_a_plain_checkout_is_enough(tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "someone_slotcon_hub_main").symlink_to(ROOT)  # as if it had come from GitHub before
    packages = json.dumps([sysconfig.get_path(kind) for kind in ("purelib", "platlib")])
    environment = {**os.environ, "TORCH_HOME": str(tmp_path), "SLOTCON_HUB_HOME": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", BARE, str(ROOT), packages],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["entries"] == ENTRIES
    assert found["help"].startswith("ResNet-50, the paper's backbone")
    assert not {"training", "accelerate", "datasets", "scipy", "matplotlib", "tyro"} & set(found["modules"])


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_point_says_what_it_takes_and_gives(name):
    scope = runpy.run_path(str(ROOT / "hubconf.py"))
    assert sorted(key for key, value in scope.items() if callable(value) and key[0] != "_") == ENTRIES
    text = scope[name].__doc__
    assert text.startswith(timm.models.model_entrypoint(name).__doc__)
    for word in ("pretrained:", "coco_800ep", "the path of a checkpoint", "**kwargs", "features_only", "Raises:"):
        assert word in text
    assert "B x 3 x H x W" in text
    assert ("B x K" in text) == name.endswith("_proto")
    (call,) = (line for line in text.splitlines() if "torch.hub.load" in line)
    assert f'"{name}"' in call
    assert "trust_repo=True" in call
    assert max(map(len, text.splitlines())) <= 116


def test_load_from_the_checkout(load):
    features = load("slotcon_r18", features_only=True, out_indices=(2, 4))(torch.zeros(1, 3, 64, 64))
    assert [f.shape[1:] for f in features] == [(128, 8, 8), (512, 2, 2)]
    assert load("slotcon_nano_proto", num_classes=7)(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_pretrained_without_weights_is_an_error(load):
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        load("slotcon_r18", pretrained=True)
    with pytest.raises(RuntimeError, match=r"slotcon_r50\.coco_800ep"):
        load("slotcon_r50", pretrained=True)
    with pytest.raises(RuntimeError, match=r"slotcon_r50\.in1k_100ep"):
        load("slotcon_r50", pretrained="in1k_100ep")


def test_the_weights_of_the_package(load):
    for name in ("slotcon_nano", "slotcon_nano_proto"):
        expected = timm.create_model(name, pretrained=True).state_dict()
        same(load(name, pretrained=True), expected)
        same(load(name, pretrained="imagenette_180ep"), expected)


def exported(slotcon: SlotCon, folder: Path) -> Path:
    return export(slotcon, folder / "export", input_size=96, trained="In a test.")


def safetensors(slotcon: SlotCon, folder: Path) -> Path:
    save_file(slotcon.state_dict(), folder / "slotcon.safetensors")
    return folder / "slotcon.safetensors"


def checkpoint(slotcon: SlotCon, folder: Path) -> Path:
    torch.save({"model": slotcon.state_dict(), "epoch": 3}, folder / "slotcon.pth")
    return folder / "slotcon.pth"


@pytest.mark.parametrize("kind", [exported, safetensors, checkpoint])
def test_a_path_gives_the_teacher(load, slotcon, tmp_path, kind):
    path, teacher = kind(slotcon, tmp_path), slotcon.teacher
    backbone = load("slotcon_nano", pretrained=str(path))
    same(backbone, teacher.backbone.state_dict())
    whole = load("slotcon_nano_proto", pretrained=path, global_pool="")
    same(whole, teacher.state_dict())
    assert whole.num_classes == 5
    for net in (backbone, whole):
        assert net.pretrained_cfg["input_size"][-1] == (96 if kind is exported else 128)
        assert "state_dict" not in net.pretrained_cfg


def test_a_path_takes_timms_arguments(load, slotcon, tmp_path):
    path, teacher = str(exported(slotcon, tmp_path)), slotcon.teacher
    same(load("slotcon_nano", pretrained=path, num_classes=3), teacher.backbone.state_dict())
    changed = load("slotcon_nano_proto", pretrained=path, num_classes=3, in_chans=1).eval()
    assert changed(torch.zeros(2, 1, 64, 64)).shape == (2, 3)
    same(changed, teacher.state_dict(), but=("prototypes.", "backbone.conv1.0."))
    x = torch.rand(1, 3, 64, 64)
    for name in ("slotcon_nano", "slotcon_nano_proto"):
        maps = load(name, pretrained=path, features_only=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(maps(x)[-1], teacher.backbone.eval()(x))


def test_a_tag_of_the_local_store(load, slotcon, tmp_path):
    import_checkpoint(safetensors(slotcon, tmp_path), "slotcon_nano.mine")
    same(load("slotcon_nano", pretrained="mine"), slotcon.teacher.backbone.state_dict())
    same(load("slotcon_nano_proto", pretrained="mine", global_pool=""), slotcon.teacher.state_dict())


@pytest.mark.parametrize("pretrained", ["nope", "no/such/file.pth", ""])
def test_neither_a_tag_nor_a_path(load, tmp_path, monkeypatch, pretrained):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load("slotcon_r50", pretrained=pretrained)
    if pretrained:
        assert "give a tag (coco_800ep, cocoplus_800ep, in1k_100ep, in1k_200ep) or the path" in str(error.value)


def test_what_does_not_fit_is_refused(load, slotcon, tmp_path):
    path = exported(slotcon, tmp_path)
    with pytest.raises(ValueError, match="holds a backbone without prototypes: load it as slotcon_nano"):
        load("slotcon_nano_proto", pretrained=path / "backbone")
    with pytest.raises(ValueError, match=r"made with .*, which slotcon_r18 is not"):
        load("slotcon_r18", pretrained=path / "backbone")
    for kwargs in ({}, {"num_classes": 3}, {"features_only": True}):
        with pytest.raises(ValueError, match=r"is of a resnet10t made with .*, which slotcon_r18 is not"):
            load("slotcon_r18", pretrained=path, **kwargs)
        with pytest.raises(ValueError, match="these weights are not those of slotcon_r18"):
            load("slotcon_r18", pretrained=safetensors(slotcon, tmp_path), **kwargs)

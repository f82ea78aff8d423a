"""Models by name: those of the store in timm, paths in ``pretrained``, and folders named like models."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from checkpoint_files import one_sentence
from safetensors.torch import save_file

from slotcon_hub import SlotCon, SlotConConfig
from slotcon_hub.concepts.inference import load_prototypes
from slotcon_hub.export.teacher import export
from slotcon_hub.models.importing import import_checkpoint
from slotcon_hub.models.loading import load, name_for_timm
from slotcon_hub.weights import store
from training.evaluation import models as evaluated

SMALL = SlotConConfig(num_prototypes=5, hidden_dim=12, out_dim=7)


@pytest.fixture(scope="module")
def slotcon() -> SlotCon:
    torch.manual_seed(0)
    return SlotCon("slotcon_nano", SMALL)


@pytest.fixture
def run(slotcon: SlotCon, home: Path, tmp_path: Path) -> Path:
    export(slotcon, tmp_path / "run" / "export", input_size=96, trained="In a test.")
    return tmp_path / "run"


def same(net: Any, expected: Any) -> None:
    found = net.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())


def test_what_was_imported_is_a_name_in_timm_at_once(slotcon, run):
    import_checkpoint(run, "slotcon_nano.mine")
    backbone = timm.create_model("slotcon_nano.mine", pretrained=True)
    same(backbone, slotcon.teacher.backbone)
    assert backbone.pretrained_cfg["input_size"] == (3, 96, 96)
    whole = timm.create_model("slotcon_nano_proto.mine", pretrained=True, global_pool="")
    same(whole, slotcon.teacher)
    assert timm.create_model("slotcon_nano_proto.mine").prototypes.weight.shape == (5, 7)  # random, and so shaped
    other = timm.create_model("slotcon_nano_proto.mine", pretrained=True, num_classes=3, in_chans=1)
    assert other(torch.zeros(2, 1, 64, 64)).shape == (2, 3)
    assert len(timm.create_model("slotcon_nano.mine", pretrained=True, features_only=True).feature_info) == 5


NEW_PROCESS = """
import json
import timm
import slotcon_hub
print(json.dumps({
    "listed": timm.list_pretrained("slotcon_*"),
    "default": [timm.get_pretrained_cfg(name).tag for name in ("slotcon_nano", "slotcon_r34")],
    "classes": timm.get_pretrained_cfg("slotcon_nano_proto.mine").num_classes,
    "loaded": timm.create_model("slotcon_nano_proto.mine", pretrained=True).num_classes,
    "usual": timm.create_model("slotcon_nano_proto", pretrained=True).num_classes,
}))
"""


def test_a_new_process_lists_it_too(run, tmp_path):
    import_checkpoint(run, "slotcon_nano.mine")
    (tmp_path / "store" / "slotcon_r34.broken").mkdir()
    (tmp_path / "store" / "slotcon_r34.broken" / store.CONFIG).write_text('{"pretrained_cfg": [')
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NEW_PROCESS],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in ("slotcon_nano.mine", "slotcon_nano_proto.mine", "slotcon_nano.imagenette_20ep"):
        assert name in found["listed"]
    assert not [name for name in found["listed"] if "r34" in name]
    assert found["default"] == ["imagenette_180ep", None]
    assert (found["classes"], found["loaded"], found["usual"]) == (5, 5, 64)


@pytest.mark.parametrize("damage", [store.WEIGHTS, store.CONFIG, store.RECORD])
def test_a_damaged_entry_is_refused_by_its_name(run, damage):
    done = import_checkpoint(run, "slotcon_nano.mine")
    (done.folders["slotcon_nano.mine"] / damage).write_text("{")
    with pytest.raises(ValueError, match="import the checkpoint again"):
        timm.create_model("slotcon_nano.mine", pretrained=True)


@pytest.mark.parametrize("name", ["slotcon_nano", "slotcon_nano_proto", "slotcon_r50", "slotcon_r18"])
@pytest.mark.parametrize("pretrained", ["/does/not/exist.pth", Path("no/such"), "mine", ""])
def test_never_other_weights_than_those_asked_for(run, name, pretrained):
    with pytest.raises(ValueError, match="and there is no such file or folder: give a tag") as error:
        timm.create_model(name, pretrained=pretrained)
    one_sentence(error.value)


def test_a_state_dict_is_not_taken_for_yes(slotcon):
    with pytest.raises(
        ValueError, match="pretrained is a OrderedDict: give True, False, a tag or a path; for a state dict, call"
    ):
        timm.create_model("slotcon_nano", pretrained=slotcon.state_dict())


def test_a_path_that_exists_is_loaded(slotcon, run, tmp_path):
    save_file(slotcon.state_dict(), tmp_path / "slotcon.safetensors")
    for path in (run, str(tmp_path / "slotcon.safetensors")):
        same(timm.create_model("slotcon_nano", pretrained=path), slotcon.teacher.backbone)
        same(timm.create_model("slotcon_nano_proto", pretrained=path), slotcon.teacher)
    gray = timm.create_model("slotcon_nano", pretrained=run, pretrained_cfg_overlay={"mean": (0.5,) * 3})
    assert gray.pretrained_cfg["mean"] == (0.5,) * 3
    with pytest.raises(ValueError, match="give one of the two"):
        timm.create_model("slotcon_nano.imagenette_20ep", pretrained=run)
    with pytest.raises(ValueError, match="slotcon_proto has no weights of its own"):
        timm.create_model("slotcon_proto", pretrained=run)


def test_a_run_is_a_model_wherever_one_is_named(slotcon, run):
    for folder in (run, run / "export", run / "export" / "backbone"):
        same(load(str(folder)), slotcon.teacher.backbone)
        same(evaluated.load(str(folder)), slotcon.teacher.backbone)
    for folder in (run, run / "export", run / "export" / "prototypes"):
        same(load_prototypes(str(folder)), slotcon.teacher)
        same(load(f"local-dir:{folder}", "prototypes"), slotcon.teacher)
    (run.parent / "unfinished" / "checkpoints").mkdir(parents=True)
    for use in (load, load_prototypes, evaluated.load):
        with pytest.raises(ValueError, match="unfinished is not finished, so it has no export: resume") as error:
            use(str(run.parent / "unfinished"))
        one_sentence(error.value)


@pytest.mark.parametrize("name", ["slotcon_nano", "slotcon_nano_proto.imagenette_20ep", "slotcon_r18", "resnet18"])
def test_a_folder_named_like_a_model_does_not_hide_it(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (run / "export").rename(tmp_path / name)
    assert name_for_timm(name) == name
    assert name_for_timm(f"./{name}") == name_for_timm(f"local-dir:{name}") == f"local-dir:{Path(name, 'backbone')}"
    if name == "slotcon_nano":
        same(evaluated.load(name), timm.create_model(name, pretrained=True))
    if "proto" in name:
        same(load_prototypes(name), timm.create_model(name, pretrained=True))


def test_a_folder_whose_name_begins_like_a_model_is_found(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run.rename(tmp_path / "slotcon_nano.2024")
    assert load_prototypes("slotcon_nano.2024").num_classes == 5

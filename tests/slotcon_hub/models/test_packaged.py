"""The small model's weights, which come with the package."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from slotcon_hub.models.importing import import_checkpoint
from slotcon_hub.weights import store, table
from training.tools.package import package

pytestmark = pytest.mark.usefixtures("home")
NANO, PROTO = "slotcon_nano", "slotcon_nano_proto"


def the_file() -> Path:
    path = table.packaged(table.find(NANO))
    assert path is not None
    return path


@pytest.mark.parametrize("tag", ["imagenette_20ep", "imagenette_80ep"])
def test_earlier_weights_still_load(tag):
    file = table.packaged(table.find(NANO, tag))
    state = load_file(file)
    whole = timm.create_model(f"{PROTO}.{tag}", pretrained=True)
    assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in whole.state_dict().items())
    assert not torch.equal(state["prototypes.weight"], load_file(the_file())["prototypes.weight"])


def test_both_models_load_from_one_small_file():
    assert the_file().stat().st_size <= 4e6
    assert table.packaged(table.find(PROTO)) == the_file()
    state = load_file(the_file())
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}
    whole = timm.create_model(PROTO, pretrained=True, global_pool="").eval()
    assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in whole.state_dict().items())
    part = timm.create_model(NANO, pretrained=True).eval()
    assert all(torch.equal(v, whole.backbone.state_dict()[k]) for k, v in part.state_dict().items())
    with torch.no_grad():
        assert whole(torch.zeros(1, 3, 64, 96)).shape == (1, 64, 4, 6)
        assert part(torch.zeros(1, 3, 64, 96)).shape == (1, 256)


@pytest.mark.parametrize("kwargs", [{"num_classes": 5}, {"in_chans": 1}, {"features_only": True}], ids=str)
def test_they_load_as_timm_is_asked(kwargs):
    expected = load_file(the_file())["backbone.layer4.0.conv2.weight"]
    for name, key in ((NANO, "layer4.0.conv2.weight"), (PROTO, "backbone.layer4.0.conv2.weight")):
        found = timm.create_model(name, pretrained=True, **kwargs).state_dict()
        matching = [v for k, v in found.items() if k.endswith(key.removeprefix("backbone."))]
        assert [torch.equal(v, expected.float()) for v in matching] == [True]


def test_a_file_that_was_changed_is_refused(tmp_path, monkeypatch):
    changed = shutil.copy(the_file(), tmp_path)
    state = load_file(changed)
    state["prototypes.weight"][0, 0] += 1
    save_file(state, changed)
    for file in (Path(changed), tmp_path / "absent.safetensors"):
        monkeypatch.setattr(table, "packaged", lambda row, file=file: file)
        with pytest.raises(ValueError, match=r"SHA-256 differs.: reinstall the package"):
            timm.create_model(NANO, pretrained=True, num_classes=5)


def test_weights_of_the_store_come_first(tmp_path):
    state = {k: v.float() for k, v in load_file(the_file()).items()}
    state["backbone.bn1.bias"] = torch.ones_like(state["backbone.bn1.bias"])
    save_file(state, tmp_path / "own.safetensors")
    import_checkpoint(tmp_path / "own.safetensors", f"{NANO}.mine")
    assert store.names() == [f"{NANO}.mine", f"{PROTO}.mine"]
    assert timm.create_model(NANO, pretrained=True).bn1.bias.ne(1).any()


def test_the_package_takes_its_own_weights_without_counters(tmp_path):
    state = {k: v.float() for k, v in load_file(the_file()).items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "own.safetensors")
    assert f"{NANO}.imagenette_180ep" in import_checkpoint(tmp_path / "own.safetensors", NANO).folders


def test_the_package_takes_its_own_file():
    done = import_checkpoint(the_file(), NANO)
    assert list(done.folders) == [f"{NANO}.imagenette_180ep", f"{PROTO}.imagenette_180ep"]
    state = load_file(the_file())
    whole = timm.create_model(PROTO, pretrained=True).state_dict()
    assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in whole.items())
    for row in table.ROWS:  # what an import holds them to is what their models have
        with torch.device("meta"):
            net = timm.create_model(row.name)
        if row.has_prototypes:
            assert net.prototypes.weight.shape == (row.prototypes, row.out_dim)
            assert len(net.projector.mlp[0].weight) == row.hidden_dim


@pytest.mark.parametrize("key", ["backbone.conv1.0.weight", "prototypes.weight"])
def test_other_weights_do_not_take_the_name_of_published_ones(tmp_path, key):
    """Else a run imported without a tag would be loaded as the default weights, under their results."""
    state = {k: v.float() for k, v in load_file(the_file()).items()}
    state[key][0, 0] += 1
    save_file(state, tmp_path / "own.safetensors")
    for name in (NANO, PROTO, f"{NANO}.imagenette_20ep"):
        with pytest.raises(ValueError, match=r"come with slotcon_hub, and these are others: .*\.mine$"):
            import_checkpoint(tmp_path / "own.safetensors", name, force=True)
    assert store.names() == []


@pytest.mark.parametrize("variable", ["HOME", "SLOTCON_HUB_HOME"])
def test_they_load_without_a_store(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("SLOTCON_HUB_HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    if variable == "HOME":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
        with pytest.raises(RuntimeError, match="has no home folder: set SLOTCON_HUB_HOME"):
            store.home()
    else:
        monkeypatch.setenv("SLOTCON_HUB_HOME", f"{tmp_path}/{'x' * 300}")  # stat fails, as without a permission
    assert store.names() == []
    assert timm.create_model(NANO, pretrained=True).num_features == 256
    with pytest.raises(RuntimeError, match="not in the local store"):
        timm.create_model("slotcon_r50", pretrained=True)


def test_a_run_is_packaged_in_half_precision(tmp_path):
    export = tmp_path / "run" / "export" / "prototypes"
    export.mkdir(parents=True)
    state = {"prototypes.weight": torch.randn(3, 4), "backbone.bn1.num_batches_tracked": torch.tensor(7)}
    save_file(state, export / store.WEIGHTS)
    path = package(tmp_path / "run", "slotcon_nano.mine", tmp_path / "packaged")
    assert path.name == "slotcon_nano_proto.mine.safetensors"
    found = load_file(path)
    assert torch.equal(found["prototypes.weight"], state["prototypes.weight"].half())
    assert found["backbone.bn1.num_batches_tracked"] == 7
    save_file({"prototypes.weight": torch.tensor([1e9])}, export / store.WEIGHTS)
    with pytest.raises(ValueError, match="too large for half precision"):
        package(tmp_path / "run", "slotcon_nano.mine", tmp_path / "packaged")

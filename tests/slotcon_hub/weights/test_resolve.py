"""``pretrained=True`` by name: from the store, from the Hub, and the one error where neither has the weights."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_files import Malicious, flip, one_sentence
from hub_server import HubServer
from safetensors.torch import load_file, save, save_file
from tiny import shaken
from torch import nn

from slotcon_hub.models.importing import import_checkpoint
from slotcon_hub.weights import store, table

NAME = "slotcon_r50.cocoplus_800ep"
TAGS = ["coco_800ep", "cocoplus_800ep", "in1k_100ep", "in1k_200ep"]


@pytest.fixture(scope="module")
def r50() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet50", num_classes=0, zero_init_last=False).eval()


@pytest.fixture(scope="module")
def filled(r50: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one of the published names, which tests copy."""
    folder = tmp_path_factory.mktemp("filled")
    torch.save(r50.state_dict(), folder / "backbone.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOTCON_HUB_HOME", str(folder / "store"))
        import_checkpoint(folder / "backbone.pth", NAME)
    return folder / "store"


@pytest.fixture
def offline(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store alone; nothing here writes to it."""
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(filled))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """An empty store and an empty Hub, of an organisation that the user has named."""
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "store"))
    monkeypatch.setattr(table, "_CHOSEN", table.ORGANISATION)
    return hub


def test_the_rows_are_timms():
    expected = [f"{name}.{tag}" for name in ("slotcon_r50", "slotcon_r50_proto") for tag in TAGS]
    expected += [
        f"{name}.imagenette_{n}ep" for name in ("slotcon_nano", "slotcon_nano_proto") for n in (20, 80, 180)
    ]
    assert sorted(timm.list_models("slotcon*", pretrained=True)) == sorted(expected)
    for row in table.ROWS:
        cfg = timm.get_pretrained_cfg(row.name)
        assert cfg.hf_hub_id == f"{table.ORGANISATION}/{row.name}"
        assert cfg.num_classes == (row.prototypes if row.has_prototypes else 0)
        assert row.prototypes == (2048 if "in1k" in row.tag else 64 if "nano" in row.name else 256)
    assert timm.get_pretrained_cfg("slotcon_r50_proto").tag == "coco_800ep"
    assert timm.create_model("slotcon_r50_proto.in1k_200ep", hidden_dim=8).num_classes == 2048


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "kwargs", [{}, {"num_classes": 10}, {"in_chans": 1}, {"num_classes": 3, "in_chans": 4}], ids=str
)
def test_the_store_is_enough(r50, kwargs):
    found, expected = timm.create_model(NAME, pretrained=True, **kwargs).state_dict(), r50.state_dict()
    assert all(
        torch.equal(found[k], v) for k, v in expected.items() if k != "conv1.weight" or "in_chans" not in kwargs
    )
    if kwargs.get("in_chans") == 1:
        torch.testing.assert_close(found["conv1.weight"], expected["conv1.weight"].sum(1, keepdim=True))
    assert ("fc.weight" in found) == ("num_classes" in kwargs)


@pytest.mark.usefixtures("offline")
def test_the_store_is_enough_for_features(r50):
    x = torch.randn(1, 3, 64, 64)
    features = timm.create_model(NAME, pretrained=True, features_only=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(features(x)[-1], r50.forward_features(x))
    tagged = timm.create_model("slotcon_r50", pretrained=True, pretrained_cfg="cocoplus_800ep")
    assert torch.equal(tagged.conv1.weight, r50.conv1.weight)


@pytest.mark.usefixtures("offline")
def test_a_source_of_ones_own_wins(r50, tmp_path):
    own = {**r50.state_dict(), "bn1.bias": torch.ones(64)}
    save_file(own, tmp_path / "own.safetensors")
    for overlay in ({"file": str(tmp_path / "own.safetensors")}, {"state_dict": own}):
        assert timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay).bn1.bias.eq(1).all()


def cut(folder: Path) -> None:
    (folder / store.WEIGHTS).write_bytes((folder / store.WEIGHTS).read_bytes()[:-10])


def forget(folder: Path) -> None:
    (folder / store.WEIGHTS).unlink()


@pytest.mark.parametrize("damage", [flip, cut, forget])
@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 10}])
def test_a_damaged_store_is_refused(filled, tmp_path, monkeypatch, damage, kwargs):
    shutil.copytree(filled, tmp_path / "store")
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "store"))
    damage(tmp_path / "store" / NAME)
    with pytest.raises(ValueError, match="import the checkpoint again") as error:
        timm.create_model(NAME, pretrained=True, **kwargs)
    one_sentence(error.value)
    if damage is flip:
        with pytest.raises(ValueError, match="SHA-256 differs"):
            timm.create_model(f"local-dir:{tmp_path / 'store' / NAME}", pretrained=True)


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 10}])
def test_values_that_are_not_finite_are_refused(r50, tmp_path, kwargs):
    state = {**r50.state_dict(), "bn1.bias": torch.full((64,), torch.inf)}
    with pytest.raises(ValueError, match=r"bn1\.bias has NaN or Inf"):
        timm.create_model("slotcon_r50", pretrained=True, pretrained_cfg_overlay={"state_dict": state}, **kwargs)


def test_code_in_a_file_does_not_run(r50, tmp_path):
    torch.save({"model": r50.state_dict(), "args": Malicious(tmp_path / "marker")}, tmp_path / "bad.pth")
    with pytest.raises(RuntimeError, match="weights_only"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "bad.pth")})
    assert not (tmp_path / "marker").exists()


def test_the_hub_comes_after_the_store(r50, hub, tmp_path):
    hub.add_repo(table.repository(NAME), {store.WEIGHTS: save(r50.state_dict())})
    model = timm.create_model(NAME, pretrained=True, num_classes=10)
    assert torch.equal(model.conv1.weight, r50.conv1.weight)
    save_file({**r50.state_dict(), "bn1.bias": torch.ones(64)}, tmp_path / "other.safetensors")
    import_checkpoint(tmp_path / "other.safetensors", NAME)
    asked = len(hub.requests)
    assert timm.create_model(NAME, pretrained=True).bn1.bias.eq(1).all()
    assert len(hub.requests) == asked


def test_nobody_is_asked_for_what_nobody_vouches_for(r50, hub, monkeypatch):
    hub.add_repo(table.repository(NAME), {store.WEIGHTS: save(r50.state_dict())})
    monkeypatch.setattr(table, "_CHOSEN", "")
    monkeypatch.setenv("SLOTCON_HUB_ORG", "people")  # too late: the address is that of before
    with pytest.raises(RuntimeError, match=r"not published on the Hub yet: run .*SLOTCON_HUB_ORG") as error:
        timm.create_model(NAME, pretrained=True)
    one_sentence(error.value)
    assert not hub.requests


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 3}])
def test_a_backbone_takes_its_part_of_a_prototype_model(kwargs):
    whole = shaken(timm.create_model("slotcon_r18_proto", hidden_dim=8, out_dim=4), 0.1).state_dict()
    overlay = {"state_dict": {k: v.half() for k, v in whole.items()}}
    net = timm.create_model("slotcon_r18", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    part = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    assert all(torch.equal(v, whole[f"backbone.{k}"].half().to(v.dtype)) for k, v in part.items())
    del overlay["state_dict"]["backbone.bn1.bias"]
    with pytest.raises(ValueError, match=r"1 keys are absent and 0 unknown \(bn1.bias\)"):
        timm.create_model("slotcon_r18", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def test_a_byte_that_changed_on_the_way_is_noticed(r50, hub):
    hub.add_repo(table.repository(NAME), {store.WEIGHTS: save(r50.state_dict())})
    hub.corrupted.add((table.repository(NAME), store.WEIGHTS))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"is not the published slotcon_r50.*remove it") as error:
            timm.create_model(NAME, pretrained=True)
    one_sentence(error.value)


def test_a_pickle_on_the_hub_is_not_asked_for(hub, tmp_path):
    torch.save(Malicious(tmp_path / "marker"), tmp_path / "bad.bin")
    hub.add_repo(table.repository(NAME), {"pytorch_model.bin": (tmp_path / "bad.bin").read_bytes()})
    with pytest.raises(RuntimeError, match="slotcon-hub import CHECKPOINT"):
        timm.create_model(NAME, pretrained=True)
    assert not (tmp_path / "marker").exists()
    assert not any("pytorch_model.bin" in request.path for request in hub.requests)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("absent", "no such repository"),
        ("private", "no such repository, or it is private"),
        ("gated", "access is granted on its page"),
        ("offline", "HF_HUB_OFFLINE is set"),
        ("unplugged", "there is no connection"),
        ("empty", "404"),
    ],
)
def test_where_neither_has_them_one_error_names_both_ways(r50, hub, monkeypatch, state, reason):
    if state in ("private", "gated", "empty"):
        files = {} if state == "empty" else {store.WEIGHTS: b"x"}
        hub.add_repo(table.repository(NAME), files, **({} if state == "empty" else {state: True}))
    if state == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if state == "unplugged":
        nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nobody)
        monkeypatch.setattr("time.sleep", lambda _: None)  # the client's five tries
    for kwargs in ({}, {"num_classes": 10}):
        with pytest.raises(RuntimeError, match=reason) as error:
            timm.create_model(NAME, pretrained=True, **kwargs)
        assert f"slotcon-hub import CHECKPOINT {NAME}" in str(error.value)
        assert "connect to the Hub" in str(error.value)
        assert "\n" not in str(error.value)


def test_the_full_prototype_model_goes_all_the_way(tmp_path, monkeypatch):
    """The one test with the published dimensions, 50 million parameters."""
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = timm.create_model("slotcon_r50_proto.in1k_200ep")
    save_file(source.state_dict(), tmp_path / "teacher.safetensors")
    with pytest.raises(ValueError, match="has 256 prototypes and this checkpoint 2048"):
        import_checkpoint(tmp_path / "teacher.safetensors", "slotcon_r50.coco_800ep")
    done = import_checkpoint(tmp_path / "teacher.safetensors", "slotcon_r50.in1k_200ep")
    assert len(done.folders) == 2
    expected = load_file(tmp_path / "teacher.safetensors")
    found = timm.create_model("slotcon_r50_proto.in1k_200ep", pretrained=True, global_pool="").state_dict()
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    other = timm.create_model("slotcon_r50_proto.in1k_200ep", pretrained=True, num_classes=5)
    assert torch.equal(other.projector.mlp[0].weight, expected["projector.mlp.0.weight"])

"""The folder that is published: what is in it, who can load it, and what is refused on the way."""

import json
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_files import flip, one_sentence
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from timm.data import resolve_data_config
from tiny import fill_store
from torch import nn

from slotcon_hub.export.targets import save_as
from slotcon_hub.files import sha256
from slotcon_hub.models.loading import load
from slotcon_hub.publishing import parity
from slotcon_hub.publishing.release import CARD, FILES, PREVIEW, build
from slotcon_hub.weights import store

ROOT = Path(__file__).parents[3]
R18, NANO, PROTO = "slotcon_r18.mine", "slotcon_nano.mine", "slotcon_nano_proto.mine"


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nn.Module]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOTCON_HUB_HOME", str(tmp_path_factory.getbasetemp() / "filled"))
        return fill_store(R18, NANO, PROTO)


@pytest.fixture(autouse=True)
def _home(nets: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path_factory.getbasetemp() / "filled"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("name", "architecture", "args"),
    [
        (R18, "resnet18", None),
        (NANO, "resnet10t", {"channels": [32, 64, 128, 256], "stem_width": 16, "output_stride": 16}),
        (PROTO, "slotcon_nano_proto", {"in_chans": 3, "num_classes": 64, "global_pool": "avg"}),
    ],
)
def test_it_is_what_timm_loads(nets, tmp_path, name, architecture, args):
    folder = build(name, tmp_path / "new/model")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == set(FILES) - {PREVIEW}
    config = json.loads((folder / store.CONFIG).read_text())
    assert (config["name"], config["architecture"]) == (name, architecture)
    assert config.get("model_args") == args
    assert config["num_features"] == nets[name].num_features
    assert config["num_classes"] == nets[name].num_classes
    assert config["global_pool"] == "avg"
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert type(loaded) is type(nets[name])
    assert loaded.state_dict().keys() == nets[name].state_dict().keys()
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), nets[name](x), rtol=0, atol=0)


def test_its_tensors_are_what_the_model_makes(nets, tmp_path):
    folder = build(PROTO, tmp_path / "model")
    tensors = load_file(folder / parity.FILE)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "images": (2, 3, 64, 64),
        "map": (2, 256, 4, 4),
        "output": (2, 64),
    }
    with torch.no_grad():
        torch.testing.assert_close(nets[PROTO].forward_features(tensors["images"]), tensors["map"])
        torch.testing.assert_close(nets[PROTO](tensors["images"]), tensors["output"])
    record = json.loads((folder / store.RECORD).read_text())
    assert record == {file: sha256(folder / file) for file in (store.WEIGHTS, store.CONFIG, parity.FILE)}


def test_the_tensors_of_2048_channels_are_few(tmp_path):
    parity.write(timm.create_model("resnet26", num_classes=0).eval(), tmp_path)
    assert (tmp_path / parity.FILE).stat().st_size < 300_000


def test_the_same_name_gives_the_same_bytes(tmp_path):
    one, two = build(NANO, tmp_path / "one"), build(NANO, tmp_path / "two")
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in FILES if file != PREVIEW)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_preview_is_shown_below_the_title(tmp_path, kind):
    Image.new("RGB", (8, 6), "red").save(tmp_path / f"scene.{kind}")
    folder = build(NANO, tmp_path / "model", preview=tmp_path / f"scene.{kind}")
    with Image.open(folder / PREVIEW) as image:
        assert (image.format, image.size) == ("PNG", (8, 6))
    assert PREVIEW in json.loads((folder / store.RECORD).read_text())
    plain = (build(NANO, tmp_path / "plain") / CARD).read_text()
    card = (folder / CARD).read_text()
    assert ModelCard(card).data.to_dict() == ModelCard(plain).data.to_dict()
    shown = f"\n![Preview]({PREVIEW})\n"
    assert card.replace(shown, "") == plain
    title = next(line for line in plain.splitlines() if line.startswith("# "))
    assert f"{title}\n{shown}" in card


@pytest.mark.parametrize("kind", ["absent", "text", "gif", "cut"])
def test_what_is_no_image_leaves_no_folder(tmp_path, kind):
    path = tmp_path / "image.png"
    if kind == "text":
        path.write_text("an image")
    if kind in ("gif", "cut"):
        Image.effect_noise((64, 64), 50).save(path, "GIF" if kind == "gif" else "PNG")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"image\.png cannot be read as a PNG or JPEG image") as error:
        build(NANO, tmp_path / "model", preview=path)
    one_sentence(error.value)
    assert not (tmp_path / "model").exists()


def test_what_the_store_lacks_is_not_published(tmp_path):
    with pytest.raises(
        ValueError, match=r"lacks slotcon_r34\.x: run `slotcon-hub import CHECKPOINT slotcon_r34\.x`"
    ):
        build("slotcon_r34.x", tmp_path / "model")
    with pytest.raises(ValueError, match="has no default tag"):
        build("resnet18", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["slotcon_nano.imagenette_20ep", "slotcon_nano_proto.imagenette_20ep"])
def test_the_preprocessing_is_that_of_the_table(tmp_path, name):
    row = timm.get_pretrained_cfg(name)
    assert (row.input_size, row.crop_pct) == ((3, 128, 128), 1.0)  # with which its numbers were measured
    stated = resolve_data_config(pretrained_cfg=json.loads(json.dumps(row.to_dict())))
    folder = build(name, tmp_path / "model")
    save_as("timm", load(name), tmp_path / "exported")
    for place in (folder, tmp_path / "exported"):
        found = json.loads((place / store.CONFIG).read_text())["pretrained_cfg"]
        assert resolve_data_config(pretrained_cfg=found) == stated
    assert (folder / CARD).read_text() == (ROOT / "model_cards" / f"{name}.md").read_text()


def test_damaged_weights_are_not_published(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "store"))
    fill_store(NANO)
    flip(store.folder(NANO))
    with pytest.raises(ValueError, match="SHA-256 differs"):
        build(NANO, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_that_holds_something_stays(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        build(NANO, tmp_path)
    assert (tmp_path / "notes").read_text() == "mine"

"""What is loaded into a backbone, and what is not, is said, or refused."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from safetensors.torch import save_file

from slotcon_hub import SlotCon, SlotConConfig
from slotcon_hub.export.teacher import export
from slotcon_hub.models.backbone import create_backbone as start_of_training
from slotcon_hub.models.importing import import_checkpoint
from slotcon_hub.models.loading import load
from slotcon_hub.models.maps import load_map
from training.evaluation.models import load as evaluated
from training.transfer.backbones import architecture_of, create_maps
from training.transfer.segmenter import Segmenter
from training.transfer.semantic.model import create_backbone


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a folder of a classifier's weights as timm does, without some of them.

    timm loads these without strictness into a model of no classes.
    """

    def write(without="\0"):
        torch.manual_seed(0)
        state = timm.create_model("resnet10t", num_classes=10).state_dict()
        state = {name: value for name, value in state.items() if not name.startswith(without)}
        state["projector.weight"] = torch.ones(1)
        save_file(state, tmp_path / "model.safetensors")
        cfg = {
            "architecture": "resnet10t",
            "num_classes": 10,
            "num_features": 512,
            "pretrained_cfg": {"num_classes": 10, "classifier": "fc"},
        }
        (tmp_path / "config.json").write_text(json.dumps(cfg))
        return tmp_path, state

    return write


def test_all_of_a_folders_weights_are_loaded_and_the_rest_is_named(folder):
    place, state = folder()
    model, lines = create_maps(str(place), pretrained=True)
    own = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert all(torch.equal(state[name], value) for name, value in own.items())
    assert lines == [
        f"backbone: all {len(own)} tensors loaded from {place}",
        f"unused tensors of {place}, besides a classifier: projector.weight",
    ]
    assert len(model(torch.zeros(1, 3, 64, 64))) == 4


@pytest.mark.parametrize(
    "create",
    [
        lambda name: create_maps(name, pretrained=True),
        lambda name: create_backbone(name, 16),
        lambda name: Segmenter(name, 3, pretrained=True),
        evaluated,
        lambda name: load_map(name, 64),
        lambda name: start_of_training(f"local-dir:{name}", pretrained=True),
        lambda name: load(name, num_classes=0),
    ],
    ids=["detection", "segmentation", "fine-tuning", "knn", "maps", "pre-training", "load"],
)
def test_weights_that_leave_something_random_are_refused(folder, create):
    place, _ = folder(without="layer3.0.conv1")
    with pytest.raises(ValueError, match=r"lack 1 tensors, such as layer3\.0\.conv1\.weight"):
        create(str(place))


@pytest.mark.parametrize(
    ("architecture", "tensor"),
    [("test_convnext", "stages.2.blocks.0.conv_dw.weight"), ("test_vit", "blocks.1.mlp.fc1.bias")],
)
def test_tensors_with_another_name_among_the_maps_are_found_missing(tmp_path, architecture, tensor):
    """timm's lists of maps rename what they hold: stages_2, model.blocks."""
    net = timm.create_model(architecture, num_classes=10)
    state, own = net.state_dict(), {"num_classes": 10, "classifier": net.pretrained_cfg["classifier"]}
    cfg = {"architecture": architecture, "num_classes": 10, "pretrained_cfg": own}
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    save_file(state, tmp_path / "model.safetensors")
    create_maps(str(tmp_path), pretrained=True)
    del state[tensor]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"lack 1 tensors, such as {re.escape(tensor)}: choose other weights"):
        create_maps(str(tmp_path), pretrained=True)


def test_the_last_norm_of_a_transformer_that_pools_is_not_missing(tmp_path):
    """timm calls it fc_norm then, and norm without pooling, where it starts as ones and zeros."""
    net = timm.create_model("test_vit2", num_classes=10)
    cfg = {"num_classes": 10, "classifier": "head"}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_vit2", "num_classes": 10, "pretrained_cfg": cfg})
    )
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    found = load_map(str(tmp_path), 64).model.state_dict()
    assert torch.equal(found["blocks.1.mlp.fc1.weight"], net.state_dict()["blocks.1.mlp.fc1.weight"])
    assert found["norm.weight"].eq(1).all()


def test_threads_that_load_at_once_leave_torch_as_it_was(folder):
    place, state = folder()
    original = torch.nn.Module.load_state_dict
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: evaluated(str(place)), range(8)))
    assert torch.nn.Module.load_state_dict is original
    assert all(torch.equal(one.conv1[0].weight, state["conv1.0.weight"]) for one in models)


def test_random_weights_are_called_random():
    _, lines = create_maps("resnet10t", pretrained=False)
    assert lines == ["backbone: resnet10t with random weights"]


@pytest.mark.parametrize("name", ["no_such_model", "resnet10", "slotcon_r34"])
def test_what_is_not_to_be_had_ends_in_a_sentence(name):
    with pytest.raises(ValueError, match=name) as error:
        create_maps(name, pretrained=True)
    assert "\n" not in str(error.value)


def test_the_architecture_of_maps_needs_neither_the_folder_nor_the_name_of_their_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "store"))
    slotcon = SlotCon("slotcon_nano", SlotConConfig(num_prototypes=5, hidden_dim=12, out_dim=7))
    export(slotcon, tmp_path / "run" / "export", input_size=96, trained="In a test.")
    import_checkpoint(tmp_path / "run", "slotcon_nano.mine")
    alone = f"local-dir:{tmp_path / 'run' / 'export' / 'backbone'}"
    for name in (str(tmp_path / "run"), alone, "slotcon_nano.mine", "slotcon_nano.imagenette_80ep", "slotcon_nano"):
        maps, _ = create_maps(name, pretrained=True)
        architecture, args = json.loads(json.dumps(architecture_of(maps)))
        assert timm.is_model(architecture)
        assert "." not in architecture
        again, _ = create_maps(architecture, pretrained=False, **args)
        again.load_state_dict(maps.state_dict())
        assert again.feature_info.reduction() == maps.feature_info.reduction()

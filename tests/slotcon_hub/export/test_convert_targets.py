import pickle
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from checkpoint_files import one_sentence
from tiny import shaken
from torch import Tensor, nn

from slotcon_hub import SlotCon, SlotConConfig
from slotcon_hub.convert import (
    from_backbone_only,
    from_official,
    recognise,
    teacher_backbone,
    teacher_prototypes,
    to_detectron2,
    to_mmseg,
    to_torchvision,
)
from slotcon_hub.export.teacher import backbone_model, prototype_model

SMALL = SlotConConfig(num_prototypes=5, hidden_dim=12, out_dim=7)
TARGETS = [to_torchvision, to_detectron2, to_mmseg]


def trained(net: Any) -> Any:
    """The network with nothing left at its default."""
    return shaken(net, 0.02).eval()


def backbone(name: str) -> Any:
    return trained(timm.create_model(name, num_classes=0))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(found[key] is expected[key] or torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
@torch.no_grad()
def test_torchvisions_resnet_is_the_same_network(name):
    ours = backbone(name.replace("resnet", "slotcon_r"))
    theirs = torchvision.models.get_model(name, weights=None)
    missing, unexpected = theirs.load_state_dict(to_torchvision(ours.state_dict()), strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(theirs.eval()(x), ours(x), rtol=1e-4, atol=1e-5)


def detectron2_layers(net: Any) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolutions of a ResNet with their norms, by the names that Detectron2's ``build_resnet`` gives them."""
    layers = {"stem.conv1": (net.conv1, net.bn1)}
    for stage, blocks in {"res2": net.layer1, "res3": net.layer2, "res4": net.layer3, "res5": net.layer4}.items():
        for i, block in enumerate(blocks):
            if block.downsample is not None:
                layers[f"{stage}.{i}.shortcut"] = block.downsample[0], block.downsample[1]
            layers[f"{stage}.{i}.conv1"] = block.conv1, block.bn1
            layers[f"{stage}.{i}.conv2"] = block.conv2, block.bn2
            if hasattr(block, "conv3"):
                layers[f"{stage}.{i}.conv3"] = block.conv3, block.bn3
    return layers


@pytest.mark.parametrize(("name", "convolutions"), [("slotcon_r18", 20), ("slotcon_r50", 53)])
def test_detectron2_gets_every_convolution_and_norm_under_its_name(name, convolutions):
    net = backbone(name)
    checkpoint = pickle.loads(pickle.dumps(to_detectron2(net.state_dict())))
    assert set(checkpoint) == {"model", "__author__", "matching_heuristics"}
    assert checkpoint["matching_heuristics"] is True
    expected = {}
    for layer, (conv, norm) in detectron2_layers(net).items():
        expected[f"{layer}.weight"] = conv.weight
        for part in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{layer}.norm.{part}"] = getattr(norm, part)
    assert len(expected) == 5 * convolutions
    assert set(checkpoint["model"]) == set(expected)
    for key, value in checkpoint["model"].items():
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(value, expected[key].detach().numpy(), err_msg=key, strict=True)


def test_the_names_of_detectron2s_resnet50():
    blocks = {"res2": 3, "res3": 4, "res4": 6, "res5": 3}
    layers = ["stem.conv1", *(f"{stage}.0.shortcut" for stage in blocks)]
    layers += [f"{stage}.{i}.conv{c}" for stage, depth in blocks.items() for i in range(depth) for c in (1, 2, 3)]
    norms = ("weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    model = to_detectron2(backbone("slotcon_r50").state_dict())["model"]
    assert len(layers) == 53
    assert set(model) == {f"{layer}.{part}" for layer in layers for part in norms}
    shapes = {"stem.conv1": (64, 3, 7, 7), "res2.0.shortcut": (256, 64, 1, 1), "res5.2.conv2": (512, 512, 3, 3)}
    assert {layer: model[f"{layer}.weight"].shape for layer in shapes} == shapes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_detectron2s_arrays_are_float32(dtype):
    model = to_detectron2(backbone("slotcon_r18").to(dtype).state_dict())["model"]
    assert {value.dtype for value in model.values()} == {np.dtype("float32")}


def test_mmseg_gets_torchvisions_names():
    state = backbone("slotcon_r18").state_dict()
    checkpoint = to_mmseg(state)
    assert set(checkpoint) == {"state_dict"}
    theirs = {k for k in torchvision.models.resnet18().state_dict() if not k.startswith("fc.")}
    assert set(checkpoint["state_dict"]) == theirs
    same(checkpoint["state_dict"], dict(state))


@pytest.mark.parametrize("target", [to_torchvision, to_mmseg])
@pytest.mark.parametrize("name", ["slotcon_r18", "slotcon_r50"])
def test_there_and_back(target, name):
    net, other = backbone(name), timm.create_model(name, num_classes=0)
    found = from_backbone_only(target(net.state_dict()))
    same(found, dict(net.state_dict()))
    other.load_state_dict(found)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["slotcon_nano", "resnet10t", "resnet50d", "seresnet50"])
def test_a_network_without_a_twin_is_told_where_else_to_go(target, name):
    state = timm.create_model(name, num_classes=0).state_dict()
    with pytest.raises(ValueError, match=r"does not exist in torchvision.*with timm or ONNX") as error:
        target(state)
    one_sentence(error.value)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "state", [{}, {"fc.weight": torch.zeros(1)}, {"teacher.backbone.conv1.weight": torch.zeros(1)}]
)
def test_no_empty_file_is_written(target, state):
    with pytest.raises(ValueError, match=r"hold no key of a ResNet backbone.*teacher_backbone") as error:
        target(state)
    one_sentence(error.value)


@pytest.mark.parametrize("target", TARGETS)
def test_a_classifier_does_not_travel(target):
    with pytest.raises(ValueError, match=r"'fc\.weight' does not exist"):
        target(timm.create_model("slotcon_r18", num_classes=3).state_dict())


def test_the_teacher_is_what_is_exported():
    model = trained(SlotCon("slotcon_r18", SMALL))
    state = model.state_dict()
    same(teacher_backbone(state), dict(backbone_model(model).state_dict()))
    same(teacher_prototypes(state), dict(prototype_model(model).state_dict()))
    assert not torch.equal(teacher_backbone(state)["conv1.weight"], state["student.backbone.conv1.weight"])


@pytest.mark.parametrize("take", [teacher_backbone, teacher_prototypes])
@pytest.mark.parametrize("state", [{}, {"conv1.weight": torch.zeros(1)}, {"student.backbone.x": torch.zeros(1)}])
def test_without_a_teacher(take, state):
    with pytest.raises(ValueError, match=r"hold no teacher.*not the state of a SlotCon") as error:
        take(state)
    one_sentence(error.value)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "encoder_k.", "module.encoder_k.", "backbone.", "module.backbone."]
)
@pytest.mark.parametrize("outer", [(), ("model",), ("state_dict",), ("teacher",), ("model", "teacher")])
def test_backbone_only_files_in_all_their_wrappings(prefix, outer):
    state = torchvision.models.resnet18().state_dict()
    file: Any = {prefix + key: value for key, value in state.items()}
    for key in reversed(outer):
        file = {"epoch": 3, key: file}
    assert recognise(file) == "backbone"
    found = from_backbone_only(file)
    same(found, {key: value for key, value in state.items() if not key.startswith("fc.")})
    timm.create_model("slotcon_r18", num_classes=0).load_state_dict(found)


def test_a_backbone_with_a_deep_stem_is_read():
    state = timm.create_model("slotcon_nano").state_dict()
    assert recognise(state) == "backbone"
    same(from_backbone_only(state), dict(state))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({}, "holds no key of a ResNet backbone"),
        ({"model": {}}, "holds no key of a ResNet backbone"),
        ({"fc.weight": torch.zeros(1)}, "holds no key of a ResNet backbone"),
        ({"model": torch.zeros(1)}, "'model' is not part of a backbone-only file"),
        ({"conv1.weight": 3}, r"'conv1\.weight' is not part of"),
        ({"conv1.weight": np.zeros(1)}, r"'conv1\.weight' is not part of"),
        ({"encoder_q.conv1.weight": torch.zeros(1)}, r"'encoder_q\.conv1\.weight' is not part of"),
        ({"conv1.weight": torch.zeros(1), "projector.mlp.0.bias": torch.zeros(1)}, "'projector"),
        ({"conv1.weight": torch.zeros(1), "encoder_k.conv1.weight": torch.zeros(1)}, "occurs twice"),
        ({3: torch.zeros(1)}, "holds named tensors"),
        ([torch.zeros(1)], "holds named tensors, which this list"),
        (torch.zeros(1), "holds named tensors, which this Tensor"),
    ],
)
def test_what_is_no_backbone_only_file_is_refused(file, message):
    with pytest.raises(ValueError, match=message) as error:
        from_backbone_only(file)
    one_sentence(error.value)


def official() -> dict[str, Tensor]:
    """A SlotCon's state in the authors' names."""
    names = {
        "student.backbone.": "encoder_q.",
        "teacher.backbone.": "encoder_k.",
        "student.projector.": "projector_q.",
        "teacher.projector.": "projector_k.",
        "student.prototypes.": "grouping_q.slot_embed.",
        "teacher.prototypes.": "grouping_k.slot_embed.",
        "predictor.": "predictor_slot.",
        "center": "center",
    }
    state = SlotCon("slotcon_r18", SMALL).state_dict()
    pairs = ((ours, theirs, key) for key in state for ours, theirs in names.items() if key.startswith(ours))
    return {f"module.{theirs}{key.removeprefix(ours)}": state[key] for ours, theirs, key in pairs}


def test_each_kind_is_recognised_and_converts_to_the_next():
    file = {"args": None, "model": official(), "optimizer": {"state": {}}, "epoch": 800}
    assert recognise(file) == recognise(file["model"]) == "official"
    full = from_official(file)
    assert recognise(full) == recognise({f"module.{key}": value for key, value in full.items()}) == "slotcon"
    prototypes = teacher_prototypes(full)
    assert recognise(prototypes) == recognise({"state_dict": prototypes}) == "prototypes"
    assert recognise(teacher_backbone(full)) == "backbone"
    teacher = {key: value for key, value in file["model"].items() if ".encoder_k." in key}
    assert recognise({"model": teacher}) == "backbone"
    same(from_backbone_only({"model": teacher}), teacher_backbone(full))


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ({}, "its keys begin with nothing"),
        ({"model": {}}, "its keys begin with nothing"),
        (timm.create_model("convnext_atto", num_classes=0).state_dict(), "its keys begin with head, stages, stem"),
        ({"encoder_q.conv1.weight": torch.zeros(1)}, "its keys begin with encoder_q"),
        (
            {"projector.mlp.0.bias": torch.zeros(1), "prototypes.weight": 1},
            "its keys begin with projector, prototypes",
        ),
        ({str(i): i for i in range(999)}, "its keys begin with 0, 1, 10, 100, 101"),
        ({3: torch.zeros(1)}, "holds named tensors"),
        ("conv1.weight", "holds named tensors, which this str"),
    ],
)
def test_what_is_none_of_these_is_said_to_be_none(file, found):
    with pytest.raises(ValueError, match=found) as error:
        recognise(file)
    one_sentence(error.value)

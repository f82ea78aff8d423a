"""What users of timm expect of a model, for all of ours."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from torch import nn

import slotcon_hub  # noqa: F401  (registers the models)

BACKBONES = {
    "slotcon_nano": 256,
    "slotcon_r18": 512,
    "slotcon_r34": 512,
    "slotcon_r50": 2048,
    "slotcon_r101": 2048,
}
PROTOS = [f"{name}_proto" for name in BACKBONES]
ALL = [*BACKBONES, *PROTOS]
STRIDE = {name: 16 if name.startswith("slotcon_nano") else 32 for name in ALL}
SMALL = {"hidden_dim": 16, "out_dim": 8}  # of the prototype models that are run


def make(name: str, **kwargs) -> nn.Module:
    """A model without memory: its shapes alone."""
    return timm.create_model(name, device="meta", **kwargs).eval()


def images(size: int = 64, channels: int = 3, images: int = 2) -> torch.Tensor:
    return torch.zeros(images, channels, size, size, device="meta")


def is_proto(name: str) -> bool:
    return name.endswith("_proto")


def channels(name: str) -> int:
    return BACKBONES[name.removesuffix("_proto")]


def test_the_models_are_listed():
    assert set(timm.list_models("slotcon*")) == {*ALL, "slotcon_proto"}


@pytest.mark.parametrize("name", ALL)
def test_features_head_and_output(name):
    model = make(name)
    cells = 64 // STRIDE[name]
    features = model.forward_features(images())
    assert features.shape == (2, channels(name), cells, cells)
    width = {"slotcon_nano_proto": 64}.get(name, 256) if is_proto(name) else channels(name)
    assert model(images()).shape == model.forward_head(features).shape == (2, width)
    pre_logits = (128 if "nano" in name else 256) if is_proto(name) else channels(name)
    assert model.forward_head(features, pre_logits=True).shape == (2, pre_logits) == (2, model.head_hidden_size)
    assert model.num_features == channels(name)
    dense = make(name, global_pool="")(images())
    assert dense.shape == (2, width, cells, cells)


@pytest.mark.parametrize("name", ALL)
def test_intermediates(name):
    model = make(name)
    final, maps = model.forward_intermediates(images())
    assert final.shape == maps[-1].shape == model.forward_features(images()).shape
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    only = model.forward_intermediates(images(), indices=[1, 3], intermediates_only=True)
    assert [m.shape[2] for m in only] == [16, 4]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("indices", [(0, 2, 4), (1, 3)])
def test_features_only(name, indices):
    model = make(name, features_only=True, out_indices=indices)
    reductions = [min(2 ** (i + 1), STRIDE[name]) for i in indices]
    assert model.feature_info.reduction() == reductions
    maps = model(images())
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [m.shape[2] for m in maps] == [64 // r for r in reductions]
    assert maps[-1].shape[1] == channels(name) or indices[-1] != 4


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride(name, stride):
    features_only = stride == 8
    model = make(name, output_stride=stride, features_only=features_only)
    features = model(images())[-1] if features_only else model.forward_features(images())
    assert features.shape == (2, channels(name), 64 // stride, 64 // stride)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("in_chans", [1, 4])
def test_in_chans(name, in_chans):
    model = make(name, in_chans=in_chans)
    assert model.in_chans == in_chans
    assert model(images(channels=in_chans)).shape[0] == 2


@pytest.mark.parametrize("name", ALL)
def test_classifier(name):
    model = make(name, num_classes=10)
    assert model.num_classes == 10
    assert model(images()).shape == (2, 10)
    assert model.get_classifier() is (model.prototypes if is_proto(name) else model.fc)
    model.reset_classifier(7, "max")
    assert model.num_classes == 7
    assert model(images()).shape == (2, 7)
    model.reset_classifier(5)
    assert model.global_pool.pool_type == "max"  # kept
    model.reset_classifier(0, "")
    assert isinstance(model.get_classifier(), nn.Identity)
    width = model.head_hidden_size
    assert model(images()).shape == (2, width, 64 // STRIDE[name], 64 // STRIDE[name])
    assert make(name, num_classes=0)(images()).shape == (2, width)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_pooled_similarities_are_pooled_dense_ones(pool):
    dense = timm.create_model("slotcon_nano_proto", global_pool="", **SMALL).eval()
    pooled = timm.create_model("slotcon_nano_proto", global_pool=pool, **SMALL).eval()
    pooled.load_state_dict(dense.state_dict())
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        scores = dense(x)
        mean, largest = scores.mean((2, 3)), scores.amax((2, 3))
        torch.testing.assert_close(pooled(x), {"avg": mean, "max": largest, "avgmax": (mean + largest) / 2}[pool])
    assert scores.abs().max() <= 1 + 1e-6
    assert scores.std() > 0.01


@pytest.mark.parametrize("pool", ["fast", "catavgmax", "attn"])
def test_a_pooling_that_is_none_is_refused(pool):
    with pytest.raises(
        ValueError, match=f"global_pool={pool!r} cannot pool similarities: use avg, max, avgmax or ''"
    ):
        make("slotcon_nano_proto", global_pool=pool)
    with pytest.raises(ValueError, match="cannot pool similarities"):
        make("slotcon_nano_proto").reset_classifier(3, pool)


@pytest.mark.parametrize(
    ("backbone", "args", "cells"),
    [
        ("test_efficientnet", {}, 2),
        ("test_vit", {"img_size": 64}, 4),
        ("swin_tiny_patch4_window7_224", {"img_size": 64}, 2),
    ],
)
def test_any_timm_backbone_makes_a_prototype_model(backbone, args, cells):
    args = {"backbone": backbone, "num_classes": 9, **args, **SMALL}
    model = make("slotcon_proto", **args)
    assert model(images()).shape == (2, 9)
    features = model.forward_features(images())
    assert features.shape == (2, model.num_features, cells, cells)
    _, maps = model.forward_intermediates(images())
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    (last,) = make("slotcon_proto", features_only=True, out_indices=[-1], **args)(images())
    assert last.shape == maps[-1].shape == (2, model.feature_info[-1]["num_chs"], cells, cells)
    assert create_optimizer_v2(model, opt="sgd", lr=1.0, layer_decay=0.75).param_groups


@pytest.mark.filterwarnings("ignore")  # torch deprecates what timm still tests
@torch.no_grad()
def test_a_prototype_model_can_be_scripted():
    model = timm.create_model("slotcon_r18_proto", **SMALL).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize("name", ALL)
def test_layer_decay(name):
    model = make(name, num_classes=4)
    groups = create_optimizer_v2(model, opt="sgd", lr=1.0, weight_decay=0.1, layer_decay=0.75).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    by_name = {n: scale[id(p)] for n, p in model.named_parameters()}
    assert len(set(by_name.values())) > 2
    prefix = "backbone." if is_proto(name) else ""
    first = [by_name[n] for n in by_name if n.startswith((f"{prefix}conv1", f"{prefix}bn1"))]
    assert set(first) == {min(by_name.values())}
    assert by_name[f"{prefix}layer1.0.conv1.weight"] < by_name[f"{prefix}layer4.0.conv1.weight"] < 1
    last = ("projector.", "prototypes.") if is_proto(name) else ("fc.",)
    top = {n for n, value in by_name.items() if value == 1}
    assert {n for n in by_name if n.startswith(last)} == top


@pytest.mark.parametrize("name", ["slotcon_nano", "slotcon_nano_proto"])
def test_gradient_checkpointing_changes_no_gradient(name, monkeypatch):
    model = timm.create_model(name, num_classes=4, **(SMALL if is_proto(name) else {})).double()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)  # no block is without effect
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    gradients, kept = [], []
    for enable in (False, True):
        saved: list[int] = []
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            loss = model(x).square().sum()
        loss.backward()
        kept.append(sum(saved))
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert kept[1] < kept[0]  # it does save memory
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value)


ADAPTED = [{"num_classes": 10}, {"in_chans": 1}, {"features_only": True}]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        *((n, {}) for n in [*ALL, "slotcon_proto"]),
        *((n, k) for n in ("slotcon_r18", "slotcon_r18_proto") for k in ADAPTED),
    ],
)
def test_weights_that_do_not_exist_are_never_random(name, kwargs):
    if timm.models.is_model_pretrained(name):
        pytest.skip("has weights")
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        make(name, pretrained=True, **kwargs)


KINDS = {"slotcon_nano": {}, "slotcon_nano_proto": SMALL}


@pytest.fixture(params=KINDS)
def source(request) -> nn.Module:
    return timm.create_model(request.param, **KINDS[request.param])


def load(source: nn.Module, file, **kwargs) -> nn.Module:
    name = source.pretrained_cfg["architecture"]
    overlay = {"file": str(file)}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **KINDS[name], **kwargs)


def write(state: dict[str, torch.Tensor], file) -> None:
    (save_file if file.suffix == ".safetensors" else torch.save)(state, file)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 10}, {"in_chans": 1}, {"in_chans": 4, "num_classes": 0}])
def test_complete_weights_load(source, tmp_path, suffix, kwargs):
    file = tmp_path / f"weights.{suffix}"
    write(source.state_dict(), file)
    model, expected = load(source, file, **kwargs), source.state_dict()
    classifier = source.pretrained_cfg["classifier"]
    first = source.pretrained_cfg["first_conv"] + ".weight"
    for key, value in model.state_dict().items():
        if key.startswith(classifier) and "num_classes" in kwargs:
            continue
        if key == first and "in_chans" in kwargs:
            assert value.shape[1] == kwargs["in_chans"]
            if kwargs["in_chans"] == 1:
                torch.testing.assert_close(value, expected[key].sum(1, keepdim=True))
            continue
        assert torch.equal(value, expected[key]), key


def test_complete_weights_load_into_a_feature_extractor(source, tmp_path):
    write(source.state_dict(), tmp_path / "weights.pth")
    features = load(source, tmp_path / "weights.pth", features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(features(x)[-1], source.eval().forward_features(x))


def without_one(state):
    return {k: v for k, v in state.items() if not k.endswith("layer2.0.bn1.running_var")}


def with_one_more(state):
    return {**state, "layer9.weight": torch.zeros(1)}


def renamed(state):
    return {k.replace("layer", "stage"): v for k, v in state.items()}


DAMAGES = {
    without_one: r"1 keys are absent and 0 unknown \((backbone\.)?layer2\.0\.bn1\.running_var\)",
    with_one_more: r"0 keys are absent and 1 unknown \(layer9\.weight\)",
    renamed: r"\d+ keys are absent and \d+ unknown \((backbone\.)?layer1\.0\.",
}


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 10, "in_chans": 1}])
@pytest.mark.parametrize("damage", DAMAGES)
def test_other_weights_are_refused(source, tmp_path, damage, suffix, kwargs):
    """Of which timm would make a random model without a word when the number of classes differs."""
    file = tmp_path / f"weights.{suffix}"
    write(damage(source.state_dict()), file)
    name = source.pretrained_cfg["architecture"]
    with pytest.raises(ValueError, match=f"these weights are not those of {name}: {DAMAGES[damage]}"):
        load(source, file, **kwargs)


def test_weights_of_other_shapes_are_refused(source, tmp_path):
    state = source.state_dict()
    key = next(k for k in state if k.endswith("layer4.0.conv1.weight"))
    write({**state, key: state[key][:-1].clone()}, tmp_path / "weights.pth")
    for kwargs in ({}, {"num_classes": 10}):
        with pytest.raises(ValueError, match=r"layer4\.0\.conv1\.weight is \(\d+, .*\) instead of"):
            load(source, tmp_path / "weights.pth", **kwargs)


def test_prototypes_alone_may_not_be_absent(tmp_path):
    source = timm.create_model("slotcon_nano_proto", **SMALL)
    state = source.state_dict()
    del state["prototypes.weight"]
    write(state, tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match=r"Missing key.*prototypes\.weight"):
        load(source, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("ours", "theirs"), [(n, f"resnet{n.removeprefix('slotcon_r')}") for n in BACKBONES if n[8] == "r"]
)
def test_the_keys_are_those_of_timms_resnet(ours, theirs):
    expected = make(theirs, num_classes=0).state_dict()
    assert {k: v.shape for k, v in make(ours).state_dict().items()} == {k: v.shape for k, v in expected.items()}


def test_nano_is_small():
    assert sum(p.numel() for p in make("slotcon_nano").parameters()) / 1e6 == pytest.approx(1.23, abs=0.005)


@pytest.mark.parametrize("name", ["slotcon_nano_proto", "slotcon_r18_proto"])
def test_every_parameter_gets_a_gradient(name):
    model = timm.create_model(name, **SMALL)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", PROTOS[:2])
def test_pruning_drops_what_the_features_do_not_need(name):
    model = make(name)
    before = model.forward_intermediates(images(), indices=[2], intermediates_only=True)[0].shape
    model.prune_intermediate_layers([2])
    assert model.forward_intermediates(images(), indices=[2], intermediates_only=True)[0].shape == before
    assert not [
        n for n, _ in model.named_parameters() if n.startswith(("projector", "prototypes", "backbone.layer3"))
    ]

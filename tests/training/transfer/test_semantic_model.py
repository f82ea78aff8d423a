"""The fully-convolutional networks: MMSegmentation's numbers, and what a backbone must be."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from runs import assert_equal
from shared_data import shared_data

import slotcon_hub  # noqa: F401  (registers the models)
from training.tools.benchmark.memory import LiveBytes
from training.transfer.semantic.model import FCN, Head, create_backbone, pixel_loss
from training.transfer.semantic.recipes import ADE20K

FILE = "mmseg_golden.json"


@pytest.fixture(scope="module")
def golden():
    spec = importlib.util.spec_from_file_location("golden", Path(__file__).parent / "golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_are_those_of_mmsegmentation(golden):
    differences = golden.mmseg(shared_data(FILE))
    assert len(differences) == 2 * 7 + 2 * 9
    assert max(differences.values()) < 1e-9, differences


def test_other_numbers_are_seen(golden, tmp_path):
    content = json.loads(shared_data(FILE).read_text())
    content["cases"] = content["cases"][:1]
    numbers = content["cases"][0]["expected"]
    del numbers["train"]
    numbers["eval"]["logits_norm"] *= 1 + 1e-6
    numbers["eval"]["feature_shapes"][3][2] += 1
    (tmp_path / "other.json").write_text(json.dumps(content))
    differences = golden.mmseg(tmp_path / "other.json")
    assert differences.pop("voc eval logits_norm") == pytest.approx(1e-6, rel=1e-3)
    assert differences.pop("voc eval feature_shapes") > 1e-4
    assert max(differences.values()) < 1e-9


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_loss_is_averaged_over_all_pixels_or_over_those_with_a_label(align_corners):
    logits = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    truth = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    truth[0] = 255
    scores = F.interpolate(logits, (4, 5), mode="bilinear", align_corners=align_corners)
    own = [
        -scores[b, :, i, j].log_softmax(0)[int(truth[b, i, j])]
        for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5))
        if truth[b, i, j] != 255
    ]
    for average, pixels in (("all", 40), ("labelled", 20)):
        loss = pixel_loss(logits, truth, align_corners=align_corners, average=average)
        torch.testing.assert_close(loss, sum(own) / pixels)
        gradients = [
            torch.autograd.grad(3 * one, logits, retain_graph=True)[0] for one in (loss, sum(own) / pixels)
        ]
        torch.testing.assert_close(*gradients)
    torch.testing.assert_close(loss, F.cross_entropy(scores, truth.long(), ignore_index=255))
    nothing = torch.full_like(truth, 255)
    assert pixel_loss(logits, nothing, align_corners=align_corners, average="labelled") == 0


def test_the_loss_is_in_float32_under_autocast():
    logits, truth = torch.randn(1, 3, 2, 2), torch.randint(0, 3, (1, 9, 9))
    with torch.autocast("cpu", torch.bfloat16):
        loss = pixel_loss(logits.bfloat16(), truth, align_corners=True)
    torch.testing.assert_close(loss, pixel_loss(logits.bfloat16().float(), truth, align_corners=True))


@pytest.mark.parametrize(
    ("name", "stride"), [("slotcon_nano", 16), ("slotcon_nano", 8), ("test_convnext", 8), ("test_vit", 16)]
)
def test_any_backbone_with_a_map_of_the_stride_will_do(name, stride):
    side = 160
    net = FCN(create_backbone(name, stride, pretrained=False), 5, Head(8), Head(8, convs=1))
    out = net(torch.randn(2, 3, side, side))
    assert out.logits.shape == (2, 5, side // stride, side // stride)
    assert out.auxiliary.shape[:2] == (2, 5)
    assert net.eval()(torch.randn(1, 3, side, side)).auxiliary is None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("swin_tiny_patch4_window7_224", "has a last map of stride 32, not 16"),
        ("resnet_of_nobody", "resnet_of_nobody"),
    ],
)
def test_another_backbone_is_refused_in_a_sentence(name, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        create_backbone(name, 16, pretrained=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["slotcon_nano", "test_convnext", "test_vit"])
def test_what_is_computed_again_changes_no_number(name, monkeypatch):
    """Gradients and BatchNorm's statistics are bit for bit those of a network that keeps all, in fewer bytes."""
    found, peaks = [], []
    for recompute in (True, False):
        if not recompute:
            monkeypatch.setattr("training.transfer.semantic.model.recompute_first_stage", lambda _: None)
        torch.manual_seed(0)
        net = FCN(create_backbone(name, 16, pretrained=False), 3, Head(8)).train()
        x, truth = torch.randn(2, 3, 160, 160), torch.randint(0, 3, (2, 160, 160))
        with LiveBytes(net, x) as tensors:
            pixel_loss(net(x).logits, truth, align_corners=True).backward()
        gradients = {f"gradient of {key}": value.grad for key, value in net.named_parameters()}
        found.append({**net.state_dict(), **{key: value for key, value in gradients.items() if value is not None}})
        peaks.append(tensors.peak)
    assert_equal(*found)
    assert peaks[0] < peaks[1] or (name == "test_vit" and peaks[0] == peaks[1])


def test_heads_begin_as_those_of_mmsegmentation():
    net = FCN(create_backbone("slotcon_nano", 8, pretrained=False), 50, ADE20K.head, ADE20K.auxiliary)
    head = net.decode_head
    assert head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.conv_seg.bias.any()
    fan_out = 512 * 9
    assert head.convs[1].conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert head.dropout.p == net.auxiliary_head.dropout.p == 0.1

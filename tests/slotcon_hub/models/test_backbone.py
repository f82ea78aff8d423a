"""Any timm model as the backbone: convolutions, tokens, channels last."""

from collections.abc import Callable

import pytest
import timm
import torch
from tiny import TINY, make_batch, make_swin, shaken
from torch import Tensor, nn

from slotcon_hub import SlotCon
from slotcon_hub.models.backbone import create_backbone, probe_feature_map
from slotcon_hub.models.layers import PrototypeNetwork

SIDE = 64
SMALL_SWIN = {
    "embed_dim": 8,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 2, 4, 8),
    "num_classes": 0,
    "global_pool": "",
}


def swin() -> nn.Module:
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=SIDE, dynamic_img_size=True, **SMALL_SWIN)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: create_backbone("test_resnet", SIDE),
    "convnext": lambda: create_backbone("test_convnext", SIDE),
    "coatnet": lambda: create_backbone("test_coatnet", SIDE),  # a map, of a size that its parameters fix
    "vit": lambda: create_backbone("test_vit", SIDE),
    "vit with a norm in its pooling": lambda: create_backbone("test_vit4", SIDE),
    "swin": lambda: make_swin(SIDE),
}
CELLS = {name: 4 if "vit" in name else 2 for name in FAMILIES}  # of a side of the map
AS_THEY_ARE = ("resnet", "convnext", "coatnet")


def images(images: int = 2, size: int = SIDE) -> Tensor:
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_map_is_what_the_backbone_returns_cell_by_cell(family):
    backbone = shaken(FAMILIES[family](), 0.05).eval()
    network = PrototypeNetwork(backbone, 5, 12, 7)
    assert network.returns_map == (family in AS_THEY_ARE)
    features, returned = network.features(images()), backbone(images())
    cells = CELLS[family]
    assert features.shape == (2, network.channels, cells, cells)
    assert network(images()).scores.shape == (2, 5, cells, cells)
    if returned.dim() == 3:  # tokens: rows of cells, after the class token
        assert returned.shape[1] == 1 + cells**2
        returned = torch.stack([returned[:, 1 + cells * y : 1 + cells * (y + 1)] for y in range(cells)], dim=1)
    if not network.returns_map:
        returned = returned.permute(0, 3, 1, 2)
    assert torch.equal(features, returned)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family):
    """Several processes would otherwise wait for it."""
    model = SlotCon(FAMILIES[family](), TINY).train()
    views, boxes, flips = make_batch(3, SIDE, torch.float32)
    model(views, boxes, flips).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(("name", "cells"), [("resnet18", 7), ("convnext_tiny", 7), ("vit_small_patch16_224", 14)])
def test_by_their_usual_names(name, cells):
    with torch.device("meta"):  # shapes alone
        network = PrototypeNetwork(create_backbone(name, 224), 5, 12, 7)
        assert network.features(torch.zeros(1, 3, 224, 224)).shape == (1, network.channels, cells, cells)


def test_a_transformer_is_made_for_the_size_of_its_views_and_takes_others():
    backbone = create_backbone("test_vit", SIDE)
    assert backbone.pos_embed.shape[1] == 1 + 4 * 4
    assert PrototypeNetwork(backbone, 5, 12, 7).features(images(size=96)).shape[2:] == (6, 6)
    assert create_backbone("test_vit").pos_embed.shape[1] == 1 + 10 * 10  # its own size


def test_asking_for_a_size_moves_no_random_number():
    torch.manual_seed(3)
    plain = timm.create_model("test_resnet", num_classes=0, global_pool="").state_dict()
    torch.manual_seed(3)
    asked = create_backbone("test_resnet", SIDE).state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in asked.items())


def test_what_a_backbone_keeps_in_eval_mode_is_in_nobodys_way():
    """Some models keep their attention biases there, from which no gradient comes back."""
    model = SlotCon(create_backbone("efficientvit_m0"), TINY)
    biases = [p for name, p in model.student.backbone.named_parameters() if name.endswith("attention_biases")]
    model.student(images(size=224)).scores.sum().backward()
    assert biases
    assert all(p.grad is not None for p in biases)


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x)]


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 8, stride=8), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (Lists, "the backbone returns list: choose one that returns a B x C x H x W map"),
        (Idle, r"does not depend on 2 of its 4 parameters \(head.weight, head.bias\), which would stay random"),
        (lambda: "test_vit_relpos", "does not depend on 2 of its .* which would stay random: choose another"),
        (lambda: "test_mambaout", "which would stay random: choose another backbone"),
        (
            lambda: create_backbone("test_vit", 72),
            r"of 72 x 72 pixels \(.*divisible by patch size.*take another size",
        ),
        (lambda: "coat_tiny", "timm cannot make the backbone 'coat_tiny'"),
        (lambda: "resnet5000", "timm cannot make the backbone 'resnet5000'"),
    ],
)
def test_a_backbone_that_cannot_serve_is_refused_in_a_sentence(backbone, words):
    with pytest.raises(ValueError, match=words) as error:
        SlotCon(backbone(), TINY)
    assert "\n" not in str(error.value)


def test_frozen_parameters_may_idle():
    backbone = Idle()
    backbone.head.requires_grad_(False)
    SlotCon(backbone, TINY)
    SlotCon(backbone.requires_grad_(False), TINY)


def test_a_backbone_stays_in_its_mode():
    backbone = create_backbone("test_resnet")
    backbone.bn1.eval()
    probe_feature_map(backbone)
    assert backbone.training
    assert not backbone.bn1.training

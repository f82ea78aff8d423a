"""The maps of models of every kind: what they cover, and that they are the models' own."""

import pytest
import timm
import torch
from torchvision.transforms.v2.functional import normalize

from slotcon_hub.models.maps import MapModel, load_map
from slotcon_hub.models.saving import save_model


@pytest.mark.parametrize(
    ("name", "size", "cells", "stride"),
    [
        ("slotcon_nano", 96, 6, 16),
        ("test_resnet", 96, 3, 32),
        ("test_vit", 96, 6, 16),
        ("test_vit", 90, 6, 16),  # six pixels fewer than it takes
        ("test_convnext", 96, 3, 32),
        ("swin_tiny_patch4_window7_224", 96, 3, 32),
    ],
)
def test_a_map_covers_the_image(name, size, cells, stride):
    model = load_map(name, size, pretrained=False)
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    images[:, :, : size // 2] = torch.randint(0, 256, (2, 3, size // 2, size), dtype=torch.uint8)
    with torch.no_grad():
        found, black = model(images), model(torch.zeros_like(images))
    assert found.shape == (2, model.channels, cells, cells)
    assert found.dtype == torch.float32
    facts = model.describe(size)
    assert (facts["channels"], facts["map"], facts["stride"]) == (model.channels, [cells, cells], stride)
    moved = (found - black).abs().mean((0, 1))
    assert moved[0].mean() > moved[-1].mean()


def test_the_map_is_of_the_weights(tmp_path):
    net = timm.create_model("test_vit", num_classes=0)
    save_model(net.eval(), tmp_path, 160)
    model = load_map(str(tmp_path), 160)
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    with torch.no_grad():
        tokens = net.forward_features(normalize(images / 255, model.mean, model.std))
        found = model(images)
    torch.testing.assert_close(found, tokens[:, net.num_prefix_tokens :].mT.unflatten(2, (10, 10)))


def test_a_prototype_model_has_the_map_of_its_projections():
    net = timm.create_model("slotcon_nano_proto", num_classes=0, global_pool="").eval()
    model = MapModel(net)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model(images), net.projector(net.forward_features(model.standardize(images))))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("slotcon_nope", "slotcon_nope could not be loaded: there are no weights 'slotcon_nope'"),
        ("test_vit.nothing", "test_vit.nothing could not be loaded"),
        ("slotcon_r50", "slotcon_r50 could not be loaded"),
    ],
)
def test_errors_are_one_sentence(name, sentence, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=sentence) as error:
        load_map(name, 64)
    assert "\n" not in str(error.value)

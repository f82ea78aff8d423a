"""Prototype models by name, and what they make of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from prototype_models import SIDE, dividing_model, exported, painted
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, normalize, resize

from slotcon_hub.concepts.inference import CenterCrop, dense_maps, load_prototypes, segment_image
from slotcon_hub.concepts.segments import group_map
from slotcon_hub.images import decode
from slotcon_hub.models.saving import save_model
from slotcon_hub.weights import store

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def model():
    return dividing_model()


def image(height=SIDE, width=SIDE):
    return torch.from_numpy(painted(1, height, width)).permute(2, 0, 1)


def test_every_name_gives_the_weights(tmp_path):
    run = tmp_path / "run"
    folder = exported(run / "export" / "prototypes")
    save_model(timm.create_model("slotcon_nano"), run / "export" / "backbone", SIDE)
    store.add({"slotcon_nano_proto.mine": lambda entry: save_model(dividing_model(), entry, SIDE)})
    expected = dividing_model().state_dict()
    for name in (run, run / "export", folder, f"local-dir:{folder}", "slotcon_nano_proto.mine"):
        found = load_prototypes(str(name))
        assert not found.training
        assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
        assert found(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 8, 4, 4)  # the map


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("slotcon_r50", r"use a \*_proto model, slotcon_r50_proto$"),
        ("slotcon_r50.coco_800ep", r"use a \*_proto model, slotcon_r50_proto.coco_800ep$"),
        ("resnet50", r"use a \*_proto model, such as slotcon_r50_proto$"),
    ],
)
def test_a_backbone_is_refused_before_its_weights_are_looked_for(name, way_out):
    with pytest.raises(ValueError, match=f"^{name} is a backbone without prototypes: {way_out}"):
        load_prototypes(name)


def test_a_folder_without_prototypes_is_refused(tmp_path):
    save_model(timm.create_model("slotcon_nano"), tmp_path / "backbone", SIDE)
    with pytest.raises(ValueError, match=r"backbone holds no prototypes: give the export/prototypes of a run"):
        load_prototypes(str(tmp_path / "backbone"))
    save_model(timm.create_model("slotcon_nano_proto", num_classes=0), tmp_path / "none", SIDE)
    with pytest.raises(ValueError, match="none holds no prototypes"):
        load_prototypes(str(tmp_path / "none"))


NOWHERE = ["slotcon_r18_proto.nothing", "slotcon_r18_proto", "slotcon_proto", "slotcon_r50_proto", "nonsense"]


@pytest.mark.parametrize("name", NOWHERE)
def test_no_weights_no_model(name):
    with pytest.raises(ValueError, match=name) as error:
        load_prototypes(name)
    assert "\n" not in str(error.value)


def test_prototypes_never_stay_random(tmp_path):
    """Where the numbers of classes differ, timm loads all but the classifier, and says nothing."""
    folder = exported(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["num_classes"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lack 1 tensors, such as prototypes\.weight"):
        load_prototypes(str(folder))


@pytest.mark.parametrize(("height", "width"), [(300, 300), (481, 321), (240, 320), (50, 60), (1, 1)])
def test_the_crop_is_that_of_the_protocol(height, width):
    crop = CenterCrop(256, 224, "bicubic")
    expected = center_crop(resize(image(height, width), [256], 3, antialias=True), [224, 224])
    assert torch.equal(crop(image(height, width)), expected)


@pytest.mark.parametrize(("height", "width"), [(2, 30_000), (30_000, 2)])
def test_the_crop_of_a_strip_needs_little_memory(height, width):
    strip = torch.zeros(3, height, width, dtype=torch.uint8)
    strip[:, height // 2 - 3 : height // 2 + 3, width // 2 - 3 : width // 2 + 3] = 200
    crop = CenterCrop(256, 224, "bicubic")(strip)
    assert crop.shape == (3, 224, 224)
    assert crop.min() == 200


def test_the_crop_of_a_model_is_in_its_configuration(tmp_path):
    usual = timm.create_model("slotcon_proto", backbone="slotcon_nano", hidden_dim=8, out_dim=8)
    assert CenterCrop.from_model(usual) == CenterCrop(256, 224, "bicubic")
    assert CenterCrop.from_model(load_prototypes(str(exported(tmp_path / "m")))) == CenterCrop(73, SIDE, "bicubic")


def test_dense_maps_are_what_the_model_returns(model):
    images = torch.stack([image(), image().flip(2)])
    z, scores = dense_maps(model, images)
    normalised = normalize(images.float() / 255, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    with torch.inference_mode():
        torch.testing.assert_close(scores, model(normalised))
        features = model.forward_features(normalised)
        torch.testing.assert_close(z, model.forward_head(features, pre_logits=True))


def test_bfloat16_is_used_by_the_network_and_nowhere_else(model):
    kinds = []
    handle = model.projector.register_forward_hook(lambda module, given, output: kinds.append(output.dtype))
    z, scores = dense_maps(model, image()[None], torch.bfloat16)
    handle.remove()
    assert kinds == [torch.bfloat16]
    assert z.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(scores, dense_maps(model, image()[None])[1], atol=0.05, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 200), (37, 53), (64, 64)])
def test_an_image_of_any_size_is_divided(model, height, width):
    groups, segments = segment_image(model, image(height, width))
    assert groups.shape == (height, width)
    assert sum(segment.pixels for segment in segments) == height * width


def test_a_large_image_can_be_shrunk_for_the_network(model):
    seen = []
    handle = model.backbone.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    for height, width, size in ((96, 144, None), (96, 144, 32), (144, 96, 32), (30, 40, 32)):
        groups, _ = segment_image(model, image(height, width), size=size)
        assert groups.shape == (height, width)
    handle.remove()
    assert seen == [(1, 3, 96, 144), (1, 3, 32, 48), (1, 3, 48, 32), (1, 3, 30, 40)]


def test_parts_of_an_image_have_prototypes_of_their_own(model):
    """Two halves of different colours are not one segment."""
    halves = np.concatenate([np.full((64, 64, 3), (240, 30, 30)), np.full((64, 64, 3), (20, 60, 220))], axis=1)
    groups, _ = segment_image(model, torch.from_numpy(halves.astype(np.uint8)).permute(2, 0, 1))
    assert groups[32, 16] != groups[32, 112]


@pytest.mark.parametrize(("backbone", "size"), [("test_vit", (64, 48)), ("test_coatnet", (160, 160))])
@torch.inference_mode()
def test_an_image_is_resized_for_a_model_that_does_not_take_its_size(backbone, size):
    args = {"num_classes": 9, "hidden_dim": 8, "out_dim": 4, "global_pool": ""}
    model: Any = timm.create_model("slotcon_proto", backbone=backbone, **args).eval()
    odd = image(67, 45)
    groups, _ = segment_image(model, odd)
    standardized = normalize(odd[None] / 255, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    scores = model(resize(standardized, size, InterpolationMode.BICUBIC, antialias=True))
    assert torch.equal(groups, group_map(scores, (67, 45))[0][0])
    assert dense_maps(model, odd[None])[1].equal(scores)


def test_images_are_turned_upright_before(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(painted(1, 40, 60)).save(tmp_path / "a.jpg", exif=exif)
    assert decode((tmp_path / "a.jpg").read_bytes()).shape == (3, 60, 40)

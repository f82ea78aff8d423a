"""What the page shows of an image, without the page."""

import io

import numpy as np
import pytest
import timm
import torch
from image_files import KINDS
from PIL import Image
from prototype_models import dividing_model, painted

from slotcon_hub.concepts.components import fit_components
from slotcon_hub.concepts.drawing import heat
from slotcon_hub.concepts.inference import dense_maps, segment_image
from slotcon_hub.explore.analysis import analyze, decode_for_display


@pytest.fixture(scope="module")
def model():
    return dividing_model()


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)


def encoded(image, kind="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [96, 192])
def test_the_numbers_are_those_of_the_command(model, size):
    image = tensor(painted(3, 193, 700))
    found = analyze(model, image, size)
    groups, segments = segment_image(model, image, size=size)
    assert torch.equal(torch.from_numpy(found.groups), groups)
    assert found.segments == segments
    assert len(segments) > 1


def test_similarities_with_a_prototype(model):
    found = analyze(model, tensor(painted(3, 128, 640)), 128)
    k = found.segments[0].prototype
    drawn, least, most = found.similarity_map(k)
    assert drawn.size == found.overlay().size == found.principal_components().size == (640, 128)
    best = torch.nn.functional.interpolate(found.scores[None], (128, 640), mode="bilinear")[0, k]
    assert (least, most) == (pytest.approx(float(best.min())), pytest.approx(float(best.max())))
    y, x = divmod(int(best.argmax()), 640)
    assert drawn.getpixel((x, y)) == (253, 231, 37)
    assert found.segment(k) is found.segments[0]
    assert found.segment(len(found.scores) - 1) is None


def test_heat_gets_brighter():
    grey = np.asarray(heat(np.linspace(0, 1, 50)[None]).convert("L")).astype(int)
    assert (np.diff(grey) >= 0).all()
    assert grey[0, -1] - grey[0, 0] > 150


@pytest.mark.parametrize(
    ("height", "width", "displayed"), [(64, 96, (427, 640)), (1, 3000, (1, 1024)), (1800, 900, (1024, 512))]
)
def test_any_shape_is_displayed_within_bounds(model, height, width, displayed):
    image = decode_for_display(encoded(np.full((height, width, 3), 90, np.uint8), "PNG"))
    assert max(image.shape) <= 2048
    assert analyze(model, image, 64).groups.shape == displayed


def test_a_large_photograph_is_shrunk_while_it_is_decoded():
    assert tuple(decode_for_display(encoded(np.zeros((3000, 8200, 3), np.uint8))).shape) == (3, 749, 2048)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_image(kind):
    assert tuple(decode_for_display(KINDS[kind]).shape) == (3, 48, 64)


@pytest.mark.parametrize("data", [b"", b"no image", KINDS["rgb.png"][:99], KINDS["rgb.jpg"][:99]])
def test_what_is_no_image(data):
    with pytest.raises(OSError, match=r"\w"):
        decode_for_display(data)


def test_components_are_those_of_the_projections(model):
    image = tensor(painted(3, 128, 640))
    found = analyze(model, image, 128)
    z = dense_maps(model, image[None])[0][0]
    right = fit_components([z]).project(z, (128, 640)).permute(1, 2, 0).numpy() * 255
    assert abs(np.asarray(found.principal_components()) - right).max() <= 0.51


def test_a_model_of_one_size():
    args = {"backbone": "test_vit_relpos", "num_classes": 5, "hidden_dim": 8, "out_dim": 4, "global_pool": ""}
    model, image = timm.create_model("slotcon_proto", **args).eval(), tensor(painted(3, 61, 700))
    groups, segments = segment_image(model, image)
    found = analyze(model, image, 64)
    assert torch.equal(torch.from_numpy(found.groups), groups)
    assert found.segments == segments

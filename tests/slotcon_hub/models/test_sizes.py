"""The sizes of images that timm's models take, whatever they state of it."""

import pytest
import timm
import torch
from tiny import make_swin
from torch import nn

from slotcon_hub.models.sizes import Sizes, find_sizes, resize_to_model


@pytest.mark.parametrize(
    ("name", "sizes", "told"),
    [
        ("slotcon_nano", Sizes(), "of any size"),
        ("slotcon_nano_proto", Sizes(), "of any size"),
        ("test_convnext", Sizes(least=32), "of any size, at least 32 pixels a side"),
        ("dla46_c", Sizes(32, 32), "with sides that are multiples of 32 pixels"),  # states none of it
        ("test_vit", Sizes(16, 16), "with sides that are multiples of 16 pixels"),  # nor does this
        ("efficientvit_m0", Sizes(), "of any size"),  # states that it takes one size
        ("test_vit_relpos", Sizes(only=(160, 160)), "of 160 x 160 pixels only"),
        ("pit_ti_224", Sizes(only=(224, 224)), "of 224 x 224 pixels only"),  # and 225
    ],
)
@torch.inference_mode()
def test_a_model_is_asked_what_it_takes(name, sizes, told):
    net = timm.create_model(name, num_classes=0 if "proto" not in name else 3).eval()
    assert find_sizes(net) == sizes
    assert str(sizes) == told
    for height, width in ((sizes.least, sizes.least), (37, 65)):
        net(resize_to_model(net, torch.zeros(1, 3, height, width)))


@torch.inference_mode()
def test_only_images_of_other_sizes_are_resized():
    images = torch.rand(2, 3, 33, 47)
    assert resize_to_model(timm.create_model("slotcon_nano"), images) is images
    swin = make_swin(64)
    assert find_sizes(swin) == Sizes(4, 4)
    assert resize_to_model(swin, images).shape == (2, 3, 32, 48)
    assert resize_to_model(swin, images[..., :32, :40]).data_ptr() == images.data_ptr()
    assert resize_to_model(swin, images[..., :1, :1]).shape == (2, 3, 4, 4)


class Untold(nn.Module):
    """Says nothing of itself."""

    def forward(self, x):
        return x


def test_what_cannot_be_asked_is_given_all():
    assert find_sizes(Untold()) == Sizes()

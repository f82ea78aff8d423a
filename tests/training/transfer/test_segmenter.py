import pytest
import torch

import slotcon_hub  # noqa: F401  (registers the models)
from training.transfer.segmenter import Segmenter


@pytest.mark.parametrize(
    ("name", "side", "stride"),
    [
        ("slotcon_nano", 64, 4),
        ("test_convnext", 64, 4),
        ("swin_tiny_patch4_window7_224", 224, 4),
        ("test_vit", 160, 16),
        ("mobilenetv3_small_050", 64, 4),
    ],
)
def test_the_last_four_maps_of_any_backbone_are_segmented(name, side, stride):
    net = Segmenter(name, 3)
    with torch.no_grad():
        assert net(torch.randn(2, 3, side, side)).shape == (2, 3, side // stride, side // stride)

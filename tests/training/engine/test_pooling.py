"""A stem that pools before its ReLU gives the numbers of one that pools after it, bit for bit."""

import copy

import pytest
import timm
import torch
from torch import nn

from training.engine.pooling import PoolThenReLU, pool_before_relu
from training.tools.benchmark.memory import LiveBytes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [9, 12, 200])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maximum_and_relu_commute_and_so_do_their_gradients(dtype, side, memory_format):
    torch.manual_seed(0)
    values = torch.randint(-3, 3, (2, 3, side, side)).to(dtype).to(memory_format=memory_format)  # full of ties
    values[0, 0, :5] = -1
    pool = nn.MaxPool2d(3, 2, 1)
    inputs = [values.clone().requires_grad_() for _ in range(2)]
    outs = pool(inputs[0].relu()), PoolThenReLU(pool)(inputs[1])
    assert torch.equal(*outs)
    weight = torch.randn_like(outs[0])
    for out in outs:
        (out * weight).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)


def test_a_resnet_computes_the_same_and_keeps_less():
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", num_classes=0)
    changed = copy.deepcopy(plain)
    assert pool_before_relu(changed)
    assert plain.state_dict().keys() == changed.state_dict().keys()
    x, kept = torch.randn(4, 3, 64, 64), []
    for model in (plain, changed):
        with LiveBytes(model, x) as tensors:
            loss = model(x).square().sum()
            kept.append(tensors.live)
        loss.backward()
    for one, other in zip(plain.parameters(), changed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    cells = 4 * 64 * 16 * 16  # of the pooled map
    assert kept[0] - kept[1] == 4 * cells * 4 + cells * (8 - 2)  # the map before, and most of the indices
    for name, value in plain.state_dict().items():
        assert torch.equal(value, changed.state_dict()[name])


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "resnet26d", "resnetaa50"])
def test_other_stems_stay_as_they_are(name):
    model = timm.create_model(name)
    changes = name == "resnet26d"  # a deep stem, with the usual end
    assert pool_before_relu(model) == changes

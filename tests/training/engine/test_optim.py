import math

import pytest
import torch
from torch import nn

from training.engine.optim import lr_at, make_optimizer


def test_schedule_closed_form():
    args = {"base_lr": 2.0, "warmup_steps": 10, "total_steps": 110}
    assert lr_at(0, **args) == pytest.approx(0.02)
    assert lr_at(5, **args) == pytest.approx(0.02 * (99 * 0.5 + 1))
    assert lr_at(10, **args) == pytest.approx(2.0)
    assert lr_at(60, **args) == pytest.approx(1e-6 + (2 - 1e-6) / 2)
    assert lr_at(35, **args) == pytest.approx(1e-6 + (2 - 1e-6) * (1 + math.cos(math.pi / 4)) / 2)
    assert lr_at(110, **args) == pytest.approx(1e-6)


def test_schedule_without_warmup_starts_at_its_peak():
    assert lr_at(0, base_lr=3.0, warmup_steps=0, total_steps=10) == pytest.approx(3.0)


@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_lars_step_closed_form(decay):
    """Weights: trust ratio and decay; biases: plain momentum SGD."""
    layer = nn.Linear(3, 2).double()
    optimizer = make_optimizer(layer, "lars", weight_decay=decay)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    buffers = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for lr in (0.5, 0.3):
        for group in optimizer.param_groups:
            group["lr"] = lr
        gradients = [torch.randn_like(weight), torch.randn_like(bias)]
        layer.weight.grad, layer.bias.grad = (g.clone() for g in gradients)
        optimizer.step()
        trust = 0.001 * weight.norm() / (gradients[0].norm() + decay * weight.norm())
        buffers[0] = 0.9 * buffers[0] + trust * (gradients[0] + decay * weight)
        buffers[1] = 0.9 * buffers[1] + gradients[1]
        weight, bias = weight - lr * buffers[0], bias - lr * buffers[1]
        torch.testing.assert_close(layer.weight.detach(), weight)
        torch.testing.assert_close(layer.bias.detach(), bias)


@pytest.mark.parametrize("name", ["lars", "sgd"])
def test_groups(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1).requires_grad_(False))
    decayed, plain = make_optimizer(model, name, weight_decay=1e-5).param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 3, 1, 1)]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (1e-5, 0)
    assert decayed["momentum"] == plain["momentum"] == 0.9

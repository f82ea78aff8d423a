import copy
import math

import pytest
import timm.optim
import torch
from torch import nn

from training.engine.optim import Lars, lr_at, make_optimizer


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


def published_step(w, g, mu, lr, decay, adapt):
    """The rule of the published code, one parameter at a time."""
    d = g + decay * w
    q = 0.001 * w.norm() / d.norm() if adapt and w.norm() > 0 and d.norm() > 0 else 1.0
    mu = 0.9 * mu + q * d
    return w - lr * mu, mu


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("decay", [0.1, 1e-5, 0.0])
def test_lars_is_the_published_rule(decay, together, monkeypatch):
    """Ordinary, zero, tiny and absent gradients; zero and large weights; biases: plain momentum SGD."""
    layers = [nn.Linear(3, 2), nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(1, 5, bias=False)]
    model = nn.Sequential(*layers).double()
    layers[1].weight.data.zero_()
    layers[2].weight.data.mul_(300)
    layers[4].weight.requires_grad_(False)
    optimizer = make_optimizer(model, "lars", weight_decay=decay)
    if together:  # as on a GPU
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    expected = {p: (p.detach().clone(), torch.zeros_like(p)) for p in model.parameters()}
    for step, lr in enumerate((0.5, 0.3, 0.2)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for p in expected:
            p.grad = torch.randn_like(p) if p.requires_grad else None
        layers[0].weight.grad *= step != 1  # zero once
        layers[2].weight.grad *= 1e-30
        optimizer.step()
        for p, (w, mu) in expected.items():
            if p.grad is not None:
                adapt = p.ndim > 1
                expected[p] = published_step(w, p.grad, mu, lr, decay if adapt else 0.0, adapt)
            torch.testing.assert_close(p.detach(), expected[p][0], rtol=1e-12, atol=1e-14)


def test_lars_moves_prototypes_further_than_timms():
    """A gradient that opposes half of the decay: timm divides by the sum of the two norms."""
    w = torch.full((256, 256), 1.0, dtype=torch.float64)
    g = -0.5e-5 * w
    moved = {}
    for cls, options in ((Lars, {}), (timm.optim.Lars, {"always_adapt": True})):
        p = nn.Parameter(w.clone())
        p.grad = g.clone()
        cls([{"params": [p], **options}], lr=1.0, weight_decay=1e-5).step()
        moved[cls] = float((p - w).detach().norm() / w.norm())
    assert moved[Lars] == pytest.approx(0.001)
    assert moved[timm.optim.Lars] == pytest.approx(0.001 / 3, rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1e30])
def test_lars_stays_finite_in_float32(scale):
    p = nn.Parameter(torch.ones(3, 4))
    p.grad = torch.full_like(p, scale)
    optimizer = Lars([p], lr=1.0)
    optimizer.step()
    assert p.isfinite().all()
    assert (p.detach() - 1).abs().max() <= 0.0011


def test_lars_resumes():
    steps = {}
    for saved in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = make_optimizer(layer, "lars", weight_decay=0.1)
        for step in range(4):
            if saved and step == 2:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = make_optimizer(layer, "lars", weight_decay=0.5)
                optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["lr"] = 0.1
            layer.weight.grad, layer.bias.grad = torch.randn(2, 3), torch.randn(2)
            optimizer.step()
        steps[saved] = layer.weight.detach()
    assert torch.equal(steps[False], steps[True])


def test_a_state_of_timms_lars_is_refused():
    layer = nn.Linear(3, 2)
    theirs = timm.optim.Lars(layer.parameters(), lr=0.1).state_dict()
    with pytest.raises(ValueError, match=r"shorter steps.: start a new run from its weights, with --continue-from"):
        Lars(layer.parameters()).load_state_dict(theirs)


@pytest.mark.parametrize("name", ["lars", "sgd"])
def test_groups(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1).requires_grad_(False))
    decayed, plain = make_optimizer(model, name, weight_decay=1e-5).param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 3, 1, 1)]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (1e-5, 0)
    assert decayed["momentum"] == plain["momentum"] == 0.9

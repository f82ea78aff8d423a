import copy
import dataclasses
from dataclasses import replace

import pytest
import slow
import torch
from tiny import TINY, make_batch, make_model
from torch import nn

from slotcon_hub import SlotCon, SlotConConfig
from slotcon_hub import functional as SF
from slotcon_hub.models.layers import SlotPredictor
from slotcon_hub.objective.slot_loss import slot_loss


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def slow_losses(model: SlotCon, views, boxes, flips) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Grouping, slot and image-level loss, and the statistics of what is active."""
    c = model.config
    s, t, zs, zt, fs, ft = [], [], [], [], [], []
    for view, box, flip in zip(views, boxes, flips, strict=True):
        for net, f, z, scores in ((model.student, fs, zs, s), (model.teacher, ft, zt, t)):
            f.append(net.backbone(view))
            z.append(net.projector(f[-1]))
            if c.align == "projections":
                z[-1] = slow.align(z[-1], box, flip)
            scores.append(slow.cosine_scores(z[-1], net.prototypes.weight))
    group, slot = 0, 0
    for a, b in ((0, 1), (1, 0)):
        aligned = s[a], t[b]
        if c.align == "assignments":
            aligned = slow.align(s[a], boxes[a], flips[a]), slow.align(t[b], boxes[b], flips[b])
        group = group + slow.grouping_loss(*aligned, model.center, c.student_temp, c.teacher_temp)
        slots = slow.group_slots(zs[a], s[a], c.teacher_temp), slow.group_slots(zt[b], t[b], c.teacher_temp)
        slot = slot + slow.slot_loss(*slots, s[a], t[b], model.predictor, c.contrast_temp, c.slot_loss)
    image = slow.image_loss(fs, ft, model.image_loss, 0.2) if c.image_loss_weight else torch.zeros(())
    return group, slot, image


@pytest.mark.parametrize("images", [2, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"group_loss_weight": 0.2},
        {"slot_loss": "regression"},
        {"align": "projections"},
        {"image_loss_weight": 0.7},
        {"slot_loss": "regression", "align": "projections", "image_loss_weight": 1.0},
    ],
    ids=str,
)
def test_losses_equal_loops(images, options):
    """Of every option; the gradients too."""
    model = make_model(replace(TINY, **options))
    model.center.normal_(std=0.1)
    batch = make_batch(images)
    obvious = copy.deepcopy(model)
    group, slot, image = slow_losses(obvious, *batch)
    weight = model.config.group_loss_weight
    loss = weight * group + (1 - weight) * slot + model.config.image_loss_weight * image
    out = model(*batch)
    close(out.group_loss, group.detach())
    close(out.slot_loss, slot.detach())
    close(out.loss, loss)
    if model.config.image_loss_weight:
        close(out.image_loss, image.detach())
    else:
        assert out.image_loss is None
    loss.backward()
    out.loss.backward()
    for (name, p), q in zip(model.named_parameters(), obvious.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == (not p.requires_grad), name
        if p.requires_grad:
            close(p.grad, q.grad)


@pytest.mark.parametrize(
    "options",
    [{}, {"slot_loss": "regression", "align": "projections", "image_loss_weight": 1.0}],
    ids=["default", "ablations"],
)
def test_one_direction_after_the_other_is_the_pair(options):
    """Outputs, gradients, BatchNorm statistics and centre; what is kept for the backward is half."""
    together = make_model(replace(TINY, **options)).train()
    apart = copy.deepcopy(together)
    for _ in range(2):
        batch = make_batch(3)
        pair = together(*batch)
        pair.loss.backward()
        targets = apart.teach(*batch)
        outputs = []
        for direction in (0, 1):
            out = apart(*batch, targets=targets, directions=[direction])
            out.loss.backward()
            outputs.append(out)
        total = outputs[0] + outputs[1]
        for field in dataclasses.fields(pair):
            ours, theirs = getattr(total, field.name), getattr(pair, field.name)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-12, atol=1e-12)
    for (name, p), q in zip(together.named_parameters(), apart.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-12, atol=1e-12, msg=name)
    for (name, p), q in zip(together.named_buffers(), apart.buffers(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("align", ["assignments", "projections"])
@torch.no_grad()
def test_statistics_equal_counting(align):
    """Aligned projections leave the region that both views show, and what is active there."""
    model = make_model(replace(TINY, align=align))
    batch = make_batch(5)

    def active(network, view, box, flip):
        z = network(view).z
        z = slow.align(z, box, flip) if align == "projections" else z
        return slow.active_slots(slow.cosine_scores(z, network.prototypes.weight))

    students = [active(model.student, *view) for view in zip(*batch, strict=True)]
    teachers = [active(model.teacher, *view) for view in zip(*batch, strict=True)]
    out = model(*batch)
    counts = [len(active) for view in teachers for active in view]
    pairs = [len(students[a][i] & teachers[1 - a][i]) for a in (0, 1) for i in range(5)]
    assert out.active_slots.item() == pytest.approx(sum(counts) / len(counts))
    assert out.positive_pairs.item() == pytest.approx(sum(pairs) / len(pairs))
    assert out.excluded_terms.item() == pytest.approx(6 - sum(pairs) / len(pairs))
    usage = [sum(k in active for view in teachers for active in view) for k in range(6)]
    assert out.usage.tolist() == usage


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_gradients_reach_the_students_and_predictors_and_nothing_else(weight):
    model = make_model(replace(TINY, image_loss_weight=weight))
    model(*make_batch()).loss.backward()
    for name, p in model.named_parameters():
        if "teacher." in name:
            assert p.grad is None, name
        else:
            assert p.grad is not None, name
            # A bias before a BatchNorm is without effect; its gradient is rounding.
            assert name.endswith(("mlp.0.bias", "mlp.3.bias")) or p.grad.abs().sum() > 0, name


def test_gradients_are_those_of_finite_differences():
    model = make_model()
    batch = make_batch(3)
    model(*batch).loss.backward()
    weight = model.student.prototypes.weight
    direction = torch.randn_like(weight)
    step = 1e-6

    def loss_at(amount: float) -> float:
        moved = copy.deepcopy(model)
        moved.center.zero_()
        with torch.no_grad():
            moved.student.prototypes.weight.add_(direction * amount)
        return moved(*batch).loss.item()

    slope = (loss_at(step) - loss_at(-step)) / (2 * step)
    assert (weight.grad * direction).sum().item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("align", ["assignments", "projections"])
def test_center_closed_form_and_only_in_train_mode(align):
    """It is the mean of whole views, whatever is aligned."""
    model = make_model(replace(TINY, align=align))
    model.center.fill_(0.3)
    batch = make_batch()
    with torch.no_grad():
        mean = torch.cat([model.teacher(v)[1] for v in batch[0]]).mean((0, 2, 3))
    model(*batch)
    torch.testing.assert_close(model.center, (0.9 * 0.3 + 0.1 * mean)[None])
    before = copy.deepcopy(model.state_dict())
    model.eval()(*batch)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_teacher_closed_form():
    """Of the image-level projector too; all else stays as it is."""
    model = make_model(replace(TINY, image_loss_weight=1.0))
    before = copy.deepcopy(model.state_dict())
    model.update_teacher(0.9)
    parameters = dict(model.named_parameters())
    for key, value in model.state_dict().items():
        student = before[key.replace("teacher.", "student.")]
        expected = 0.9 * before[key] + 0.1 * student if key in parameters else before[key]
        torch.testing.assert_close(value, expected, msg=key)
    assert not torch.equal(model.image_loss.teacher.mlp[0].weight, before["image_loss.teacher.mlp.0.weight"])
    moved = copy.deepcopy(model.state_dict())
    model.eval()
    model.update_teacher(0.5)
    assert all(torch.equal(value, moved[key]) for key, value in model.state_dict().items())


def test_teacher_starts_as_a_copy_and_its_norms_see_its_own_forwards():
    model = SlotCon("slotcon_nano", TINY)
    for a, b in zip(model.student.parameters(), model.teacher.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not b.requires_grad
    views, boxes, flips = make_batch(2, 64, torch.float32)
    model(views, boxes, flips)
    norm = model.teacher.backbone.bn1
    assert norm.num_batches_tracked == 2  # one forward a view
    assert norm.running_mean.abs().sum() > 0


def test_initialisation():
    model = SlotCon("slotcon_r18", SlotConConfig(num_prototypes=512, hidden_dim=512))
    for head in (model.student.projector, model.predictor):
        for layer in (head.mlp[0], head.mlp[3], head.mlp[6]):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert layer.bias.abs().max() == 0
    assert model.student.prototypes.weight.std().item() == pytest.approx(1, rel=0.05)
    assert model.center.abs().max() == 0
    assert all(block.bn2.weight.abs().max() == 0 for block in model.student.backbone.layer3)


def scores_with_active(active: list[list[set[int]]], k: int = 4) -> list[torch.Tensor]:
    """Maps B x K x 1 x 3 whose active slots are the given sets (up to three of them), for each view."""
    maps = []
    for view in active:
        scores = torch.zeros(len(view), k, 1, 3, dtype=torch.float64)
        for image, slots in enumerate(view):
            for cell in range(3):
                scores[image, sorted(slots)[cell % len(slots)], 0, cell] = 1
        maps.append(scores)
    return maps


@pytest.mark.parametrize(
    ("student", "teacher", "queries"), [({0}, {1}, 0), ({0, 2}, {1, 2}, 1), ({0, 2}, {0, 2}, 2)]
)
@pytest.mark.parametrize("kind", ["contrastive", "regression"])
def test_few_queries(student, teacher, queries, kind):
    """No slot active in both views, exactly one, and two: finite, connected, and nothing is NaN."""
    model = make_model()
    model.predictor.mlp[1].running_mean.fill_(0.5)
    s, t = (SF.active_slots(m) for m in scores_with_active([[student], [teacher]]))
    slots = [torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    teachers = tuple(x.detach() for x in slots[2:])
    loss = sum(slot_loss(model.predictor, slots[a], teachers[1 - a], s & t, t, kind, 0.2) for a in (0, 1))
    loss.backward()
    assert torch.isfinite(loss)
    assert (loss.item() == 0) == (queries == 0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.predictor.parameters())
    assert slots[0].grad is not None
    moved = (model.predictor.mlp[1].running_mean != 0.5).any().item()
    assert moved == (queries > 1)  # less than two queries have no variance: the running statistics serve
    assert model.predictor.training


def test_one_query_is_normalised_by_the_running_statistics():
    predictor = SlotPredictor(4, 8)
    slot = torch.randn(1, 4)
    assert torch.equal(predictor(slot), copy.deepcopy(predictor).eval()(slot))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_prototypes": 1}, "use at least 2"),
        ({"student_temp": 0}, "student_temp=0 must be positive"),
        ({"contrast_temp": float("nan")}, "contrast_temp=nan must be a finite number"),
        ({"image_loss_weight": float("inf")}, "image_loss_weight=inf must be a finite number"),
        ({"num_prototypes": float("nan")}, "num_prototypes=nan must be a finite number"),
        ({"hidden_dim": 2.5}, "hidden_dim=2.5 must be a whole number"),
        ({"group_loss_weight": 1.5}, "between 0 and 1"),
        ({"teacher_momentum": -0.1}, "between 0 and 1"),
        ({"image_loss_weight": -1.0}, "must not be negative"),
        ({"slot_loss": "hinge"}, "slot_loss='hinge' must be one of contrastive, regression"),
        ({"align": "images"}, "align='images' must be one of assignments, projections"),
    ],
)
def test_config_names_the_fix(values, words):
    with pytest.raises(ValueError, match=words):
        SlotConConfig(**values)


def test_backbone_without_a_map_is_refused():
    with pytest.raises(ValueError, match=r"returns shape \(1, 7\).*B x C x H x W map"):
        SlotCon(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7)), TINY)


def wave(tensor: torch.Tensor, frequency: float) -> torch.Tensor:
    """Fill with numbers that depend on no random generator."""
    return tensor.copy_(torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * frequency).view_as(tensor))


def test_frozen_norms_stay_frozen():
    predictor = SlotPredictor(4, 8)
    predictor.mlp[1].eval()
    for rows in (1, 3):
        predictor(torch.randn(rows, 4))
        assert predictor.training
        assert not predictor.mlp[1].training


def test_golden_numbers():
    """A change that should not move the numbers does not: losses, gradient and centre, in float64."""
    model = make_model()
    with torch.no_grad():
        for i, value in enumerate(model.state_dict().values()):
            if value.is_floating_point():
                wave(value, 1.1 + 0.01 * i)
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.fill_(1)
        views, boxes, flips = make_batch(3)
        for i, view in enumerate(views):
            wave(view, 0.7 + 0.2 * i)
    out = model(views, boxes, flips)
    out.loss.backward()
    gradient = model.student.backbone.conv.weight.grad
    found = [out.group_loss, out.slot_loss, gradient.norm(), model.center.norm(), out.active_slots]
    assert torch.stack(found).tolist() == pytest.approx(GOLDEN, rel=1e-8)


GOLDEN = [2.736987175520301, 0.5633670000626403, 0.07495837233701877, 1.6023100663833112, 1.1666666666666667]

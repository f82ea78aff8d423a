import math

import pytest
import slow
import torch
import torch.nn.functional as F

from slotcon_hub import functional as SF

SHAPES = [(1, 2, 4, 1, 1), (2, 5, 8, 3, 2), (3, 16, 8, 4, 4)]  # B, K, D, H, W


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def random_maps(b: int, k: int, d: int, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = torch.randn(b, d, h, w, dtype=torch.float64)
    prototypes = torch.randn(k, d, dtype=torch.float64)
    return z, prototypes, slow.cosine_scores(z, prototypes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_grouping_equals_loops(shape, temperature):
    z, prototypes, scores = random_maps(*shape)
    close(SF.cosine_scores(z, prototypes), scores)
    close(SF.group_slots(z, SF.assign(scores, temperature)), slow.group_slots(z, scores, temperature))


@pytest.mark.parametrize("shape", SHAPES)
def test_active_slots_equal_loops(shape):
    *_, scores = random_maps(*shape)
    active = SF.active_slots(scores)
    assert active.dtype == torch.bool
    assert [set(row.nonzero()[:, 0].tolist()) for row in active] == slow.active_slots(scores)


def test_a_slot_that_no_cell_chooses_is_the_mean_of_the_map():
    z = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    scores = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    scores[:, 0] = 100  # the softmax of slot 1 underflows everywhere: only the constant 1e-6 is left
    close(SF.group_slots(z, SF.assign(scores, 0.07))[0, 1], z.mean((2, 3))[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("student_temp", "teacher_temp"), [(0.1, 0.07), (1.0, 0.5)])
def test_grouping_loss_equals_loops(shape, student_temp, teacher_temp):
    s, t = random_maps(*shape)[2], random_maps(*shape)[2]
    center = torch.randn(1, shape[1], dtype=torch.float64) * 0.1
    fast = SF.grouping_loss(s, t, center, student_temp=student_temp, teacher_temp=teacher_temp)
    close(fast, slow.grouping_loss(s, t, center, student_temp, teacher_temp))


def test_grouping_loss_teaches_the_student_only():
    s, t = (torch.randn(2, 3, 2, 2, requires_grad=True) for _ in range(2))
    SF.grouping_loss(s, t, torch.zeros(1, 3), student_temp=0.1, teacher_temp=0.07).backward()
    assert s.grad.abs().sum() > 0
    assert t.grad is None


@pytest.mark.parametrize("tau", [0.07, 0.2])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 7), (5, 9)])
def test_contrast_is_the_formula(queries, keys, tau):
    q, k = torch.randn(queries, 6, dtype=torch.float64), torch.randn(keys, 6, dtype=torch.float64)
    positives = torch.randint(keys, (queries,))
    expected = 0.0
    for row, positive in zip(q, positives, strict=True):
        sims = [math.exp(F.cosine_similarity(row, key, dim=0).item() / tau) for key in k]
        expected -= math.log(sims[positive] / sum(sims)) * 2 * tau / queries
    assert SF.contrast(q, k, positives, tau).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("keys", [0, 3])
def test_contrast_without_queries_is_a_connected_zero(keys):
    q = torch.randn(0, 6, requires_grad=True)
    loss = SF.contrast(q, torch.randn(keys, 6), torch.zeros(0, dtype=torch.long), 0.2)
    assert loss.item() == 0
    loss.backward()
    assert q.grad is not None


@pytest.mark.parametrize("queries", [1, 5])
def test_regression_is_the_formula(queries):
    q, k = (torch.randn(queries, 6, dtype=torch.float64) for _ in range(2))
    expected = sum(2 - 2 * F.cosine_similarity(*pair, dim=0).item() for pair in zip(q, k, strict=True)) / queries
    assert SF.regression(q, k).item() == pytest.approx(expected, rel=1e-9)
    assert SF.regression(q, 3 * q).item() == pytest.approx(0, abs=1e-12)
    assert SF.regression(q, -q).item() == pytest.approx(4)


def test_regression_without_queries_is_a_connected_zero():
    q = torch.randn(0, 6, requires_grad=True)
    loss = SF.regression(q, torch.randn(0, 6))
    assert loss.item() == 0
    loss.backward()
    assert q.grad is not None


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.2, 0.1, 0.9, 0.6), (0.0, 0.4, 0.13, 1.0)])
def test_align_equals_loops(size, flip, box):
    scores = torch.randn(2, 3, *size, dtype=torch.float64)
    boxes = torch.tensor([box, (0.1, 0.2, 0.8, 0.7)], dtype=torch.float64)
    flips = torch.tensor([flip, not flip])
    close(SF.align(scores, boxes, flips), slow.align(scores, boxes, flips))


def coordinate_map(crop: tuple[float, float, float, float], cells: int, flip: bool) -> torch.Tensor:
    """What a perfect backbone sees of an image whose colours are its coordinates: 1 x 2 x cells x cells."""
    x1, y1, x2, y2 = crop
    at = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    xs, ys = x1 + at * (x2 - x1), y1 + at * (y2 - y1)
    maps = torch.stack([xs[None].expand(cells, cells), ys[:, None].expand(cells, cells)])[None]
    return maps.flip(-1) if flip else maps


@pytest.mark.parametrize("flip_a", [False, True])
@pytest.mark.parametrize("flip_b", [False, True])
def test_a_coordinate_image_comes_back_to_its_coordinates(flip_a, flip_b):
    a, b = (0.0, 0.0, 80.0, 60.0), (40.0, 20.0, 100.0, 90.0)  # crops, in pixels; they share (40, 20, 80, 60)
    shared = (40.0, 20.0, 80.0, 60.0)
    cells = 16
    aligned = []
    for crop, flip in ((a, flip_a), (b, flip_b)):
        x1, y1, x2, y2 = crop
        w, h = x2 - x1, y2 - y1
        box = [(shared[0] - x1) / w, (shared[1] - y1) / h, (shared[2] - x1) / w, (shared[3] - y1) / h]
        if flip:
            box[0], box[2] = 1 - box[2], 1 - box[0]
        boxes = torch.tensor([box], dtype=torch.float64)
        aligned.append(SF.align(coordinate_map(crop, cells, flip), boxes, torch.tensor([flip])))
    expected = coordinate_map(shared, cells, False)
    inner = (
        slice(None),
        slice(None),
        slice(2, -2),
        slice(2, -2),
    )  # the outermost samples clamp at the border
    for view in aligned:
        close(view[inner], expected[inner])


def test_teacher_momentum_closed_form():
    assert SF.teacher_momentum(0, 100, 0.99) == pytest.approx(0.99)
    assert SF.teacher_momentum(50, 100, 0.99) == pytest.approx(0.995)
    assert SF.teacher_momentum(100, 100, 0.99) == pytest.approx(1.0)
    assert SF.teacher_momentum(25, 100, 0.9) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)

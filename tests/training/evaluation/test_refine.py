"""The guided filter against least squares in every window, and what it does to groups."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.evaluation import refine as module
from training.evaluation.refine import guided_filter, refine


def slow_filter(guide: np.ndarray, target: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Fit each window by least squares, ridge included as rows of its own, then average over windows."""
    height, width = target.shape

    def window(y: int, x: int) -> tuple[slice, slice]:
        return slice(max(y - radius, 0), y + radius + 1), slice(max(x - radius, 0), x + radius + 1)

    fits = np.zeros((height, width, 4))
    for y in range(height):
        for x in range(width):
            colors = guide[(slice(None), *window(y, x))].reshape(3, -1).T
            values = target[window(y, x)].ravel()
            ridge = np.sqrt(eps * len(values)) * np.eye(3, 4)
            rows = np.vstack([np.hstack([colors, np.ones((len(values), 1))]), ridge])
            fits[y, x] = np.linalg.lstsq(rows, np.concatenate([values, np.zeros(3)]), rcond=None)[0]
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            mean = fits[window(y, x)].reshape(-1, 4).mean(0)
            out[y, x] = mean[:3] @ guide[:, y, x] + mean[3]
    return out


@pytest.mark.parametrize(("radius", "eps"), [(1, 1e-2), (2, 1e-3), (9, 1e-1)])
def test_the_filter_equals_least_squares(radius, eps):
    rng = np.random.default_rng(0)
    guide, maps = rng.random((3, 7, 9)), rng.random((2, 7, 9))
    found = guided_filter(torch.tensor(guide), torch.tensor(maps), radius, eps)
    for one, target in zip(found, maps, strict=True):
        assert one.numpy() == pytest.approx(slow_filter(guide, target, radius, eps))


@pytest.fixture
def scene():
    """An edge that lies inside a cell, and similarities that know it only to a cell: scores, image, truth."""
    truth = (torch.arange(64) >= 28).long().expand(32, 64)
    image = torch.where(truth[None] == 1, 200, 60).expand(3, -1, -1) + torch.randint(-9, 9, (3, 32, 64))
    share = F.avg_pool2d(truth[None].float(), 16)
    return torch.cat([1 - share, share, torch.full_like(share, 0.1)]), image.byte(), truth


def plain(scores, image):
    return F.interpolate(scores[None], image.shape[1:], mode="bilinear", align_corners=False)[0].argmax(0)


def test_groups_move_to_the_edge(scene):
    scores, image, truth = scene
    before = plain(scores, image)
    after = refine(scores, image, before)
    assert (before != truth).float().mean() > 0.01
    assert torch.equal(after, truth)


def test_absent_prototypes_stay_absent_and_chunks_do_not_matter(monkeypatch):
    torch.manual_seed(1)
    scores, image = torch.rand(12, 3, 4), torch.randint(0, 256, (3, 30, 41), dtype=torch.uint8)
    scores[5:] -= 1
    before = plain(scores, image)
    after = refine(scores, image, before)
    assert set(after.unique().tolist()) <= set(before.unique().tolist()) <= set(range(5))
    assert not torch.equal(before, after)
    monkeypatch.setattr(module, "VALUES", 1)
    assert torch.equal(refine(scores, image, before), after)

"""k-means against scikit-learn from the same centres, and its first centres against loops."""

import pytest
import torch
from sklearn.cluster import KMeans
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from training.evaluation import kmeans as module
from training.evaluation.kmeans import affinities, draw_centers, kmeans, lloyd


def groups_of(points: torch.Tensor, centers: torch.Tensor) -> list[int]:
    return [min(range(len(centers)), key=lambda k: float((x - centers[k]).square().sum())) for x in points]


@pytest.mark.parametrize("chunk", [2**14, 17])
def test_iterations_are_those_of_scikit_learn(monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    points = torch.randn(300, 5) + 4 * torch.randn(8, 5)[torch.arange(300) % 8]
    found = lloyd(points, points[:8], 300)
    oracle = KMeans(8, init=points[:8].numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(
        points.numpy()
    )
    assert affinities(points, found).argmax(1).tolist() == oracle.labels_.tolist() == groups_of(points, found)
    torch.testing.assert_close(found, torch.tensor(oracle.cluster_centers_).float())


def test_one_iteration_is_that_of_loops():
    points = torch.randn(60, 3)
    first = points[:6]
    assigned = groups_of(points, first)
    expected = [points[[i for i, k in enumerate(assigned) if k == one]].mean(0) for one in range(6)]
    torch.testing.assert_close(lloyd(points, first, 1), torch.stack(expected))


def test_a_centre_without_points_takes_the_farthest_one():
    points = torch.tensor([[0.0], [1.0], [10.0], [14.0]])
    found = lloyd(points, torch.tensor([[0.5], [12.0], [500.0]]), 1)
    assert found.tolist() == [[0.5], [12.0], [10.0]]  # of two that are as far, the first
    assert lloyd(points, found, 50).tolist() == [[0.5], [14.0], [10.0]]


def test_a_point_between_centres_belongs_to_the_first():
    assert affinities(torch.zeros(1, 2), torch.tensor([[0.0, 2.0], [0.0, 1.0], [1.0, 0.0]])).argmax(1).item() == 1


def test_first_centres_are_drawn_by_squared_distance():
    points = torch.tensor([[0.0, 0], [0, 0], [3, 0], [0, 4]])
    drawn = [draw_centers(points, 2, seed).tolist() for seed in range(400)]
    pairs = [(tuple(a), tuple(b)) for a, b in drawn]
    assert all(a != b for a, b in pairs)
    after_origin = [b for a, b in pairs if a == (0, 0)]
    assert len(after_origin) / len(pairs) == pytest.approx(0.5, abs=0.08)
    assert after_origin.count((3, 0)) / len(after_origin) == pytest.approx(9 / 25, abs=0.1)


def test_seeds():
    points = torch.randn(200, 4)
    assert torch.equal(kmeans(points, 9, 3), kmeans(points, 9, 3))
    assert not torch.equal(kmeans(points, 9, 3), kmeans(points, 9, 4))
    with pytest.raises(ValueError, match="9 clusters of 8 cells: ask for fewer clusters, or give more images"):
        kmeans(points[:8], 9, 0)
    assert torch.isfinite(kmeans(torch.ones(8, 3), 5, 0)).all()  # all alike


class NoDouble(TorchDispatchMode):
    """Fails at operations that make float64 tensors, but draws of random numbers, which are made on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        assert func is torch.ops.aten.rand.generator or getattr(made, "dtype", None) != torch.float64, func
        return made


def test_a_device_without_float64_leaves_sums_to_the_cpu(monkeypatch):
    with FakeTensorMode():
        for device, place in (("mps", "cpu"), ("cpu", "cpu"), ("cuda", "cuda")):
            found = module._double(torch.empty(3, device=device))
            assert (found.dtype, found.device.type) == (torch.float64, place)
    monkeypatch.setattr(module, "_double", lambda values: values)
    with NoDouble():
        assert torch.isfinite(kmeans(torch.randn(50, 4), 5, 0)).all()

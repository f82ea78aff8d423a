"""Nearest neighbours against sorting all of them, where many are equally similar."""

import pytest
import torch
import torch.nn.functional as F

from training.evaluation import neighbors
from training.evaluation.neighbors import nearest


def slow(queries: torch.Tensor, memory: torch.Tensor, k: int) -> tuple[list, list]:
    cosines = [[float(query @ entry) for entry in memory] for query in queries]
    found = [sorted(range(len(memory)), key=lambda i, row=row: (-row[i], i))[:k] for row in cosines]
    return [[row[i] for i in entries] for row, entries in zip(cosines, found, strict=True)], found


@pytest.mark.parametrize(("chunk", "block"), [(2**14, 32), (50, 8), (7, 3), (1, 1)])
@pytest.mark.parametrize("k", [1, 6, 200])
def test_of_equally_similar_entries_the_first_are_found(monkeypatch, chunk, block, k):
    monkeypatch.setattr(neighbors, "CHUNK", chunk)
    monkeypatch.setattr(neighbors, "BLOCK", block)
    queries, memory = (torch.randint(-1, 2, (n, 4)) / 2.0 for n in (9, 150))  # few values: most are equal, exactly
    memory[:20] = -0.0
    ends = [3, 3, 70, 150]
    for end, (similarities, entries) in zip(ends, nearest(queries, memory, k, ends), strict=True):
        values, numbers = slow(queries, memory[:end], k)
        assert similarities.tolist() == values
        assert entries.tolist() == numbers
    assert nearest(queries, memory, k)[0][1].tolist() == slow(queries, memory, k)[1]


def test_entries_of_any_length_in_several_chunks():
    queries, memory = (F.normalize(torch.randn(n, 16)) for n in (40, 2 * neighbors.CHUNK + 77))
    similarities, entries = nearest(queries, memory, 30)[0]
    expected = (queries @ memory.T).sort(dim=1, descending=True)
    torch.testing.assert_close(similarities, expected.values[:, :30])
    assert (entries == expected.indices[:, :30]).float().mean() > 0.999  # products of another shape are rounded so

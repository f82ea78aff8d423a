"""The counter of live bytes, against sums by hand."""

import torch
from tiny import TINY, make_batch, make_model

from training.tools.benchmark.memory import LiveBytes


def test_bytes_are_those_of_the_tensors_that_live_together():
    held = torch.zeros(100)
    with LiveBytes(held) as count:
        assert count.live == 400
        a = torch.ones(50)  # 200 bytes
        b = a.view(5, 10) + 1  # a view costs nothing, the sum 200
        assert count.live == 800
        del a
        assert count.live == 600
        c = b.double()
        assert (count.live, count.peak) == (1000, 1000)
        b.add_(1)
        del b, c
    assert (count.live, count.peak) == (400, 1000)


def test_the_backward_is_counted():
    x = torch.ones(10, requires_grad=True)
    with LiveBytes(x) as count:
        y = (x * 2).exp().exp()
        y.sum().backward()
    assert count.live == 40 + 40 + 40  # x, its gradient, and y; what the backward needed is gone with it
    assert count.peak >= 5 * 40


def test_one_view_after_the_other_needs_less_at_the_peak_and_the_same_each_time():
    batch = make_batch(8)
    peaks: dict[bool, int] = {}
    for apart in (False, True, True):
        torch.manual_seed(0)
        model = make_model(TINY).train()
        with LiveBytes(model, *(tensor for pair in batch for tensor in pair)) as count:
            fixed = count.live
            targets = model.teach(*batch)
            for directions in [[0], [1]] if apart else [[0, 1]]:
                model(*batch, targets=targets, directions=directions).loss.backward()
        assert peaks.setdefault(apart, count.peak - fixed) == count.peak - fixed
    assert peaks[True] < 0.75 * peaks[False]

"""Maps and segments against slow, obvious versions."""

import pytest
import torch
import torch.nn.functional as F

from slotcon_hub.concepts import segments
from slotcon_hub.concepts.segments import describe_segments, group_map, pool_segments

SIZES = [(7, 7, 56, 56), (5, 8, 37, 50), (1, 1, 3, 2), (1, 4, 9, 21), (3, 1, 20, 5), (6, 9, 4, 3), (2, 2, 2, 2)]


def resized(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def agreed(scores, size):
    """Compare with the definition; where two are equally similar but for rounding, either may be taken."""
    groups, similarity = group_map(scores, size)
    all_scores = resized(scores, size)
    expected, winner = all_scores.max(1)
    torch.testing.assert_close(similarity, expected, atol=1e-6, rtol=0)
    taken = all_scores.gather(1, groups[:, None])[:, 0]
    torch.testing.assert_close(taken, expected, atol=1e-6, rtol=0)
    assert (groups == winner).float().mean() > 0.999
    return groups


@pytest.mark.parametrize(("h", "w", "height", "width"), SIZES)
@pytest.mark.parametrize("number", [1, 5, 300])
def test_group_map_is_the_argmax_of_the_resized_scores(h, w, height, width, number):
    agreed(torch.rand(3, number, h, w) * 2 - 1, (height, width))


def test_group_map_of_some_rows_at_a_time(monkeypatch):
    scores = torch.rand(2, 20, 4, 5)
    whole = group_map(scores, (31, 40))
    for values in (1, 20 * 40 * 7):
        monkeypatch.setattr(segments, "_VALUES", values)
        for one, other in zip(group_map(scores, (31, 40)), whole, strict=True):
            assert torch.equal(one, other)


def test_a_group_map_does_not_depend_on_the_other_images():
    smooth = resized(torch.rand(5, 30, 2, 2), (6, 6))
    smooth[2] = torch.rand(30, 6, 6)  # more candidates than the others have
    together = agreed(smooth, (50, 50))
    for scores, groups in zip(smooth, together, strict=True):
        assert torch.equal(group_map(scores[None], (50, 50))[0][0], groups)


def test_of_equals_the_lowest_number_is_taken():
    scores = torch.rand(1, 4, 3, 3).repeat(1, 3, 1, 1)
    assert group_map(scores, (20, 20))[0].max() < 4


def test_only_candidates_are_resized(monkeypatch):
    """A prototype that is nowhere near the best costs nothing, one that wins between the cells is not lost."""
    scores = torch.full((1, 100, 3, 2), -0.5)
    scores[0, 7, :2] = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    scores[0, 11, :2] = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    scores[0, 42] = torch.tensor([[0.55], [0.55], [0.0]])  # of no cell the best, but of the middle
    scores[0, 3, 2] = 0.9  # best in the last row of cells, so it matters in the lower strip alone
    candidates, numbers = segments._candidates(scores)
    assert numbers.tolist() == [[3, 4]]
    assert [strip[:n] for strip, n in zip(candidates[0].tolist(), [3, 4], strict=True)] == [
        [7, 11, 42],
        [3, 7, 11, 42],
    ]
    channels = []
    real = F.interpolate

    def spy(tensor, *args, **kwargs):
        channels.append(tensor.shape[1])
        return real(tensor, *args, **kwargs)

    groups = agreed(scores, (60, 40))
    assert set(groups[0, :20].unique().tolist()) == {7, 11, 42}
    assert set(groups[0, 20:].unique().tolist()) == {3, 7, 11, 42}
    monkeypatch.setattr(F, "interpolate", spy)
    group_map(scores, (60, 40))
    assert max(channels) == 4
    assert 3 in channels


@pytest.mark.parametrize(("h", "w", "height", "width"), SIZES)
def test_pooled_segments_are_means_of_resized_projections(h, w, height, width):
    z = torch.randn(3, 5, h, w, dtype=torch.float64)
    groups = torch.randint(0, 4, (3, height, width)) * 9
    expected = []
    for image in range(3):
        full = resized(z[image][None], (height, width))[0]
        for prototype in sorted(set(groups[image].flatten().tolist())):
            mask = groups[image] == prototype
            expected.append((image, prototype, int(mask.sum()), full[:, mask].mean(1)))
    image, prototype, pixels, features = pool_segments(z, groups)
    assert list(zip(image.tolist(), prototype.tolist(), pixels.tolist(), strict=True)) == [e[:3] for e in expected]
    torch.testing.assert_close(features, torch.stack([e[3] for e in expected]))


def test_pooling_some_segments_at_a_time(monkeypatch):
    z, groups = torch.randn(3, 5, 4, 4), torch.randint(0, 4, (3, 20, 20))
    whole = pool_segments(z, groups)
    monkeypatch.setattr(segments, "_VALUES", 800)
    for one, other in zip(pool_segments(z, groups), whole, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("size", [(1, 1), (1, 13), (17, 23)])
def test_regions(size):
    groups, similarities = torch.randint(0, 4, size) * 5, torch.rand(size)
    found = describe_segments(groups, similarities)
    assert [r.pixels for r in found] == sorted((r.pixels for r in found), reverse=True)
    assert {r.prototype for r in found} == set(groups.flatten().tolist())
    for segment in found:
        places = (groups == segment.prototype).nonzero().tolist()
        ys, xs = [y for y, _ in places], [x for _, x in places]
        assert segment.pixels == len(places)
        assert segment.box == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
        mean = sum(float(similarities[y, x]) for y, x in places) / len(places)
        assert segment.similarity == pytest.approx(mean)


def test_equally_large_regions_come_in_order():
    assert [r.prototype for r in describe_segments(torch.tensor([[5, 2], [2, 5]]), torch.zeros(2, 2))] == [2, 5]


def test_a_tall_strip_is_a_wide_one_on_its_side(monkeypatch):
    made = []
    weigh = segments._interpolation
    monkeypatch.setattr(segments, "_interpolation", lambda *a: made.append(weigh(*a)) or made[-1])
    scores = torch.randn(1, 20, 938, 1, generator=torch.Generator().manual_seed(0))
    height = 938 * 32  # positions are exact in float32
    groups, similarities = group_map(scores, (height, 1))
    expected = F.interpolate(scores, (height, 1), mode="bilinear").max(1)
    torch.testing.assert_close(similarities, expected.values)
    assert (groups == expected.indices).float().mean() > 0.999  # two may be equal but for rounding
    assert max(weights.numel() for weights in made) < 1000

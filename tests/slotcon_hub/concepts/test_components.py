"""Principal components against numpy's singular values, and the foreground that they divide off."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slotcon_hub.concepts.components import fit_components, fit_foreground


def test_components_are_those_of_the_singular_values():
    scale = torch.tensor([9.0, 1, 5, 0.5, 3])[:, None, None]
    maps = [torch.randn(5, 6, 7) * scale + 10, torch.randn(5, 4, 3) * scale + 10]
    found = fit_components(maps)
    cells = np.concatenate([one.double().flatten(1).numpy().T for one in maps])
    centered = cells - cells.mean(0)
    _, values, directions = np.linalg.svd(centered, full_matrices=False)
    for k in range(3):
        ours, theirs = found.directions[:, k].numpy(), directions[k]
        assert abs(ours @ theirs) == pytest.approx(1)
        assert ours[np.abs(ours).argmax()] > 0
    assert found.explained == pytest.approx((values**2 / (values**2).sum())[:3])


def test_values_fill_their_range_and_are_resized_like_the_features():
    maps = [torch.randn(8, 12, 10), torch.randn(8, 12, 10)]
    found = fit_components(maps)
    values = torch.stack([found.project(one) for one in maps])
    assert (values.amin((0, 2, 3)) == 0).all()
    assert (values.amax((0, 2, 3)) == 1).all()
    assert ((values > 0) & (values < 1)).double().mean() == pytest.approx(0.98, abs=0.01)
    large = F.interpolate(maps[0][None], (25, 31), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found.project(maps[0], (25, 31)), found.project(large), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_what_middles_have_more_of(sign):
    maps = []
    for _ in range(3):
        one = torch.randn(6, 12, 12) * 0.1
        one[0] -= 5 * sign
        one[0, 3:9, 4:8] += 10 * sign  # the object, where
        one[1, 3:9, 4:8] += torch.arange(6.0)[:, None]  # its own variance is another's
        maps.append(one)
    every, shown = fit_foreground(maps, 0.5)
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[3:9, 4:8] = True
    assert all(torch.equal(every.project(one)[0] >= 0.5, expected) for one in maps)
    assert shown.directions[:, 0].abs().argmax() == 1
    cells = torch.stack([one[:, expected] for one in maps]).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(shown.mean, cells.mean(1))


def test_images_of_one_colour_are_no_error():
    found = fit_components([torch.ones(4, 3, 3)])
    assert torch.isfinite(found.project(torch.ones(4, 3, 3))).all()
    assert found.explained == [0, 0, 0]
    with pytest.raises(ValueError, match="the maps have fewer than two cells: give a larger --size"):
        fit_components([torch.ones(4, 1, 1)])
    with pytest.raises(ValueError, match="fewer than two cells are in the foreground: give a lower --foreground"):
        fit_components([torch.randn(4, 3, 3)], [torch.zeros(3, 3, dtype=torch.bool)])

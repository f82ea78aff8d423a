"""What figures show: what belongs to no class, a name for every colour, images of several sizes."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from training.evaluation.figures import draw_groups, matched_colors, paint, paint_over


def test_no_class_is_unlike_any_palette():
    """It is striped, whatever the colours are: black, white and all greys too."""
    palette = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    colors = matched_colors([3, -1, 200, -1], palette)
    assert colors.shape == (4, 2, 3)
    for group in range(4):
        drawn = paint(np.full((40, 60), group), colors)
        assert drawn.dtype == np.uint8
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == (2 if group in (1, 3) else 1)
    assert (paint(np.zeros((5, 5), int), colors) == 3).all()


def test_groups_are_drawn_over_the_image():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    groups = np.zeros((40, 60), int)
    groups[:, 30:] = 1
    drawn = paint_over(image, groups, matched_colors([0, 1], np.uint8([[200, 0, 0], [0, 200, 0]]))).astype(int)
    assert drawn.shape == image.shape
    assert abs(drawn[:, :25] - (0.35 * image[:, :25] + 0.65 * np.array([200, 0, 0]))).max() <= 1
    assert (drawn[5:35, 30] == 255).all()
    assert (drawn[5:35, 31] == 0).all()


@pytest.mark.parametrize(("side", "number", "columns"), [(100, 9, 8), (300, 9, 4), (300, 1, 1)])
def test_images_stand_in_lines_under_a_legend(tmp_path, monkeypatch, side, number, columns):
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    shapes = [(side, side * 2 // 3) if i % 2 else (side * 2 // 3, side) for i in range(number)]
    images = [np.full((*shape, 3), 30 * i % 255, np.uint8) for i, shape in enumerate(shapes)]
    names = [f"a class of many words, number {i}" for i in range(30)]
    legend = dict(zip(names, matched_colors([*range(29), -1], np.zeros((29, 3), np.uint8)), strict=True))
    draw_groups({"images": images, "groups": images}, tmp_path / "a.png", legend)
    (figure,) = kept
    lines = -(-number // columns)
    assert len(figure.axes) == 2 * lines * columns
    assert sum(len(axis.images) for axis in figure.axes) == 2 * number
    assert [axis.texts[0].get_text() for axis in figure.axes[::columns]] == ["images", "groups"] * lines
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    width, height = figure.canvas.get_width_height()
    for text in [*figure.legends[0].get_texts(), *(text for axis in figure.axes for text in axis.texts)]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
    monkeypatch.undo()
    plt.close(figure)

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from training.evaluation.segmentation import LabeledPictures, confusion_matrix, evaluate, score, segment


def slow_iou(confusion: torch.Tensor, pairs: list[tuple[int, int]]) -> list[float]:
    """IoU from the definition, of the classes that either side shows, for groups matched with classes."""
    ious = []
    for c in range(confusion.shape[1]):
        k = next((k for k, cc in pairs if cc == c), None)
        tp = int(confusion[k, c]) if k is not None else 0
        fp = int(confusion[k].sum()) - tp if k is not None else 0
        fn = int(confusion[:, c].sum()) - tp
        if tp + fp + fn:
            ious.append(tp / (tp + fp + fn))
    return ious


def slow_score(confusion: torch.Tensor) -> tuple[float, float, float]:
    """Best one-to-one matching by trying all of them."""
    groups, classes = confusion.shape
    best, best_hits = None, -1
    smaller, larger = min(groups, classes), max(groups, classes)
    for chosen in itertools.permutations(range(larger), smaller):
        pairs = [(k, c) if groups <= classes else (c, k) for k, c in enumerate(chosen)]
        hits = sum(int(confusion[k, c]) for k, c in pairs)
        if hits > best_hits:
            best, best_hits = pairs, hits
    ious = slow_iou(confusion, best)
    total = int(confusion.sum())
    return sum(ious) / len(ious), best_hits / total, int(confusion.max(1).values.sum()) / total


@pytest.mark.parametrize(("groups", "classes"), [(4, 4), (3, 5), (6, 3), (2, 1)])
@pytest.mark.parametrize("empty_class", [False, True])
def test_score_equals_trying_all_matchings(groups, classes, empty_class):
    confusion = torch.randint(0, 1000, (groups, classes))
    if empty_class:
        confusion[:, 0] = 0
    if confusion.sum() == 0:
        confusion[0, 0] = 1
    found = score(confusion)
    assert [found.miou, found.pixel_accuracy, found.majority_accuracy] == pytest.approx(slow_score(confusion))
    assert len(found.match) == groups
    assert sum(m >= 0 for m in found.match) == min(groups, classes)


def test_score_of_classes_that_are_what_they_are():
    confusion = torch.randint(0, 1000, (4, 4))  # on the other diagonal the best matching would be another
    confusion[[0, 1, 2, 3], [3, 2, 1, 0]] += 1000
    found = score(confusion, match=range(4))
    ious = slow_iou(confusion, [(c, c) for c in range(4)])
    assert found.iou == pytest.approx(ious)
    assert found.miou == pytest.approx(sum(ious) / 4)
    assert found.pixel_accuracy == pytest.approx(int(confusion.diag().sum()) / int(confusion.sum()))
    assert found.match == [0, 1, 2, 3]
    assert score(confusion).match == [3, 2, 1, 0]


def test_a_perfect_grouping_under_other_names():
    truth = torch.tensor([[0, 1, 2, 2]])
    found = score(confusion_matrix(torch.tensor([[2, 0, 1, 1]]), truth, 3, 3))
    assert (found.miou, found.pixel_accuracy, found.match) == (1.0, 1.0, [1, 2, 0])


def test_a_class_that_nobody_shows_does_not_count():
    found = score(torch.tensor([[5, 0, 0], [0, 5, 0]]))
    assert found.miou == 1.0
    assert math.isnan(found.iou[2])


def test_confusion_counts_labelled_pixels_only():
    truth = torch.tensor([0, 1, 255, 1], dtype=torch.uint8)
    counted = confusion_matrix(torch.tensor([1, 1, 0, 0]), truth, 2, 2)
    assert counted.tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match="label 7 is unknown: there are 2 classes"):
        confusion_matrix(torch.tensor([0]), torch.tensor([7]), 2, 2)


class Columns(nn.Module):
    """Scores B x 2 x 1 x 2: the left half of a picture is group 0, the right half group 1."""

    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]))

    def forward(self, x):
        assert x.min() >= -1
        assert x.max() <= 1
        return self.weight.expand(len(x), -1, -1, -1)


def test_segment_resizes_the_scores():
    groups = segment(Columns(), torch.randint(0, 256, (2, 3, 5, 8), dtype=torch.uint8))
    assert groups.tolist() == [[[0, 0, 0, 0, 1, 1, 1, 1]] * 5] * 2


def test_evaluate_a_folder(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i, flip in enumerate((False, False, True)):
        truth = np.repeat([[3, 3, 1, 1]], 4, axis=0).astype(np.uint8)
        Image.fromarray(truth[:, ::-1] if flip else truth).save(tmp_path / "masks" / f"{i}.png")
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images" / f"{i}.jpg")
    pictures = LabeledPictures(tmp_path / "images", tmp_path / "masks")
    assert len(pictures) == 3
    found = evaluate(Columns(), pictures, 2, 4)
    assert found.pixel_accuracy == pytest.approx(2 / 3)
    assert found.match == [3, 1]
    swapped = evaluate(Columns(), pictures, 2, 4, match=[1, 3])
    assert swapped.pixel_accuracy == pytest.approx(1 / 3)
    (tmp_path / "masks" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"1\.jpg has no mask"):
        LabeledPictures(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(ValueError, match=r"there are no pictures in .*elsewhere"):
        LabeledPictures(tmp_path / "elsewhere", tmp_path / "masks")


def test_a_transform_moves_picture_and_mask_together(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(numbers).save(tmp_path / "images" / "0.png")
    Image.fromarray(numbers).save(tmp_path / "masks" / "0.png")
    pictures = LabeledPictures(tmp_path / "images", tmp_path / "masks")
    assert all(torch.equal(channel, pictures[0][1]) for channel in pictures[0][0])
    pictures.transform = v2.RandomCrop(4)
    seen = [pictures[0] for _ in range(5)]
    assert all(torch.equal(picture[0], mask) and mask.shape == (4, 4) for picture, mask in seen)
    assert len({mask.sum().item() for _, mask in seen}) > 1

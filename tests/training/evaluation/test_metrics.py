"""The numbers of a segmentation against all matchings, and against scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from training.evaluation.metrics import confusion_matrix, score, score_part


def slow_score(confusion: torch.Tensor) -> tuple[float, float, float]:
    """Best one-to-one matching by trying all of them; IoU from the definition."""
    groups, classes = confusion.shape
    best, best_hits = None, -1
    smaller, larger = min(groups, classes), max(groups, classes)
    for chosen in itertools.permutations(range(larger), smaller):
        pairs = [(k, c) if groups <= classes else (c, k) for k, c in enumerate(chosen)]
        hits = sum(int(confusion[k, c]) for k, c in pairs)
        if hits > best_hits:
            best, best_hits = pairs, hits
    ious = []
    for c in range(classes):
        k = next((k for k, cc in best if cc == c), None)
        tp = int(confusion[k, c]) if k is not None else 0
        fp = int(confusion[k].sum()) - tp if k is not None else 0
        fn = int(confusion[:, c].sum()) - tp
        if tp + fp + fn:
            ious.append(tp / (tp + fp + fn))
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


def test_classes_that_are_what_they_are():
    confusion = torch.randint(0, 1000, (4, 4))  # on the other diagonal the best matching would be another
    confusion[[0, 1, 2, 3], [3, 2, 1, 0]] += 1000
    found = score(confusion, match=range(4))
    hits, rows, columns = confusion.diag(), confusion.sum(1), confusion.sum(0)
    assert found.iou == pytest.approx((hits / (rows + columns - hits)).tolist())
    assert found.pixel_accuracy == pytest.approx(int(hits.sum()) / int(confusion.sum()))
    assert found.match == [0, 1, 2, 3]
    assert score(confusion).match == [3, 2, 1, 0]


@pytest.mark.parametrize("empty", [(), (0,), (1, 3)], ids=["all classes", "one empty", "two empty"])
@pytest.mark.parametrize("ignored", [0, 0.3])
@pytest.mark.parametrize(("groups", "classes"), [(6, 6), (4, 7), (12, 5), (27, 27)])
def test_scikit_learn_agrees(groups, classes, ignored, empty):
    """Given the matching, everything follows from true classes and predicted ones; -1 is a class of nobody."""
    rng = np.random.default_rng([groups, classes, len(empty)])
    kept = [c for c in range(classes) if c not in empty]
    truth = rng.choice(kept, size=(5, 40, 30)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.4, truth, rng.integers(0, groups, truth.shape)) % groups
    truth[rng.random(truth.shape) < ignored] = 255
    confusion = confusion_matrix(torch.tensor(prediction), torch.tensor(truth), groups, classes)
    found = score(confusion)

    valid = truth != 255
    true, groups_of_pixels = truth[valid], prediction[valid]
    matched = np.array(found.match)[groups_of_pixels]
    counted = sklearn.metrics.confusion_matrix(groups_of_pixels, true, labels=range(max(groups, classes)))
    assert counted[:groups, :classes].tolist() == confusion.tolist()
    ious = sklearn.metrics.jaccard_score(true, matched, labels=range(classes), average=None, zero_division=0)
    shown = [c for c in range(classes) if c in true or c in matched]
    assert [found.iou[c] for c in shown] == pytest.approx(ious[shown])
    assert [c for c in range(classes) if not math.isnan(found.iou[c])] == shown
    assert found.miou == pytest.approx(ious[shown].mean())
    assert found.pixel_accuracy == pytest.approx(sklearn.metrics.accuracy_score(true, matched))

    part = [1, 2, 4]
    some = np.isin(true, part)
    miou, accuracy = score_part(confusion, found, part)
    assert miou == pytest.approx(np.mean([ious[c] for c in part if c in shown]))
    assert accuracy == pytest.approx(sklearn.metrics.accuracy_score(true[some], matched[some]))


def test_a_perfect_grouping_under_other_names():
    truth = torch.tensor([[0, 1, 2, 2]])
    found = score(confusion_matrix(torch.tensor([[2, 0, 1, 1]]), truth, 3, 3))
    assert (found.miou, found.pixel_accuracy, found.match) == (1.0, 1.0, [1, 2, 0])


def test_a_class_that_nobody_shows_does_not_count():
    confusion = torch.tensor([[5, 0, 0], [0, 5, 0]])
    found = score(confusion)
    assert found.miou == 1.0
    assert math.isnan(found.iou[2])
    assert all(map(math.isnan, score_part(confusion, found, [2])))


def test_confusion_counts_labelled_pixels_only():
    truth = torch.tensor([0, 1, 255, 1], dtype=torch.uint8)
    counted = confusion_matrix(torch.tensor([1, 1, 0, 0]), truth, 2, 2)
    assert counted.tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match="label 7 is unknown: there are 2 classes"):
        confusion_matrix(torch.tensor([0]), torch.tensor([7]), 2, 2)

"""COCO's average precision by our evaluation, against pycocotools."""

import contextlib
import copy
import io
import json
import math

import coco_folders
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from training.data.coco import CocoImages, find_coco
from training.transfer.mask_rcnn.config import MaskRCNNConfig
from training.transfer.mask_rcnn.evaluation import (
    NAMES,
    as_results,
    detect_all,
    ground_truth,
    measure,
    print_tables,
    write_results,
)
from training.transfer.mask_rcnn.model import MaskRCNN
from training.transfer.mask_rcnn.page import write_page
from training.transfer.mask_rcnn.roi_heads import Detections


@pytest.fixture
def images(tmp_path):
    coco_folders.write_coco(tmp_path, "val", 9, size=160)
    return CocoImages(*find_coco(tmp_path, "val"))


def perfect(images):
    """The objects as results, crowds left out."""
    results = []
    for record in images:
        for one in (i for i in record.instances if not i.crowd):
            polygons = [p.tolist() for p in one.polygons]
            encoded = one.rle or coco_mask.merge(coco_mask.frPyObjects(polygons, record.height, record.width))
            counts = encoded["counts"]
            mask = {**encoded, "counts": counts.decode() if isinstance(counts, bytes) else counts}
            left, top, right, bottom = one.box
            results.append(
                {
                    "image_id": record.id,
                    "category_id": images.category_ids[one.label],
                    "bbox": [left, top, right - left, bottom - top],
                    "score": 1.0,
                    "segmentation": mask,
                }
            )
    return results


def spoiled(results, rng):
    """Some missed, some twice, boxes and masks moved, scores at random, some of the wrong class."""
    found = []
    for one in copy.deepcopy(results) * 2:
        if rng.random() < 0.8:
            one["bbox"] = (np.array(one["bbox"]) + rng.normal(0, 4, 4)).tolist()
            mask = np.roll(coco_mask.decode(one["segmentation"]), int(rng.integers(-6, 7)), axis=1)
            encoded = coco_mask.encode(np.asfortranarray(mask))
            one["segmentation"] = {**encoded, "counts": encoded["counts"].decode()}
            one["score"] = float(rng.random())
            one["category_id"] = one["category_id"] if rng.random() < 0.9 else 10 - one["category_id"]
            found.append(one)
    return found


def oracle(images, results, kind):
    """The first six numbers of pycocotools, in percent; and AP of each class."""
    other = {"bbox": "segmentation", "segm": "bbox"}[kind]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth(images)
        truth.createIndex()
        found = truth.loadRes([{k: v for k, v in one.items() if k != other} for one in copy.deepcopy(results)])
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return 100 * evaluation.stats[:6], [100 * precision[:, :, k].mean() for k in range(precision.shape[2])]


def test_perfect_predictions_give_100(images):
    numbers = measure(images, perfect(images))
    for kind in ("boxes", "masks"):
        assert all(math.isnan(value) or value == pytest.approx(100) for value in numbers[kind].values())
        assert numbers[kind]["AP"] == pytest.approx(100)
    objects = [sum(i.label == label and not i.crowd for r in images for i in r.instances) for label in (0, 1)]
    assert numbers["per_class"] == [
        {"name": name, "objects": n, "boxes": pytest.approx(100), "masks": pytest.approx(100)}
        for name, n in zip(("disc", "square"), objects, strict=True)
    ]


def test_all_numbers_are_those_of_pycocotools(images):
    results = spoiled(perfect(images), np.random.default_rng(0))
    numbers = measure(images, results)
    for kind, theirs in (("boxes", "bbox"), ("masks", "segm")):
        expected, classes = oracle(images, results, theirs)
        ours = [numbers[kind][name] for name in NAMES]
        assert 5 < ours[0] < 95
        assert np.nan_to_num(ours, nan=-100) == pytest.approx(expected, abs=1e-9)
        assert [one[kind] for one in numbers["per_class"]] == pytest.approx(classes, abs=1e-9)


def test_nothing_found_is_zero_and_a_class_without_objects_has_no_number(tmp_path):
    content = coco_folders.write_coco(tmp_path, "val", 4)
    content["categories"].append({"id": 9, "name": "[ghost]"})
    coco_folders.write_json(tmp_path, "val", content)
    images = CocoImages(*find_coco(tmp_path, "val"))
    for results in ([], perfect(images)):
        numbers = measure(images, results)
        assert numbers["boxes"]["AP"] == pytest.approx(100 * bool(results))
        assert math.isnan(numbers["per_class"][2]["masks"])
        print_tables(numbers)


def test_detections_become_results_in_the_pixels_of_the_image(images):
    record = images[0]
    box = torch.tensor([[10.0, 20.0, 42.5, 60.0]])
    detections = Detections(box, torch.tensor([0.5]), torch.tensor([1]), torch.ones(1, 28, 28))
    (result,) = as_results(record, detections, images.category_ids)
    assert {key: result[key] for key in ("image_id", "category_id", "bbox", "score")} == {
        "image_id": record.id, "category_id": 7, "bbox": [10, 20, 32.5, 40], "score": 0.5
    }  # fmt: skip
    mask = coco_mask.decode(result["segmentation"])
    assert mask.shape == (record.height, record.width)
    rows, columns = np.where(mask)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (
        20,
        60,
        10,
        43,
    )  # a pixel's centre on the border is in
    json.dumps(result)


@pytest.fixture
def detector(images):
    torch.manual_seed(0)
    config = MaskRCNNConfig(
        backbone="slotcon_nano", classes=images.classes, category_ids=images.category_ids, channels=16,
        proposals=20, detections=5, score_threshold=0.0, test_side=64, longest_side=96,
    )  # fmt: skip
    return MaskRCNN(config).train()


def test_results_and_page_are_written_whole(tmp_path, images, detector):
    results = detect_all(detector, images, workers=1)
    assert detector.training
    assert results == detect_all(detector, images)
    assert [one["image_id"] for one in results] == sorted(one["image_id"] for one in results)
    write_results(tmp_path / "results.json", results)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    write_page(tmp_path / "page.html", "<detector>", measure(images, results), images, perfect(images), most=3)
    page = (tmp_path / "page.html").read_text()
    assert page.count('alt="truth"') == page.count('alt="found"') == 3
    assert "&lt;detector&gt;" in page

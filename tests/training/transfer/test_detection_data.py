"""Data sets in COCO's format, and what a step of detection learns from."""

import copy
import os
import pickle

import coco_folders
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from training.data.coco import CocoImages, find_coco, rasterize
from training.engine.errors import RunError
from training.transfer.mask_rcnn import examples
from training.transfer.mask_rcnn.examples import AspectBatches, Batch, Examples, collate


def read(root, split="train"):
    return CocoImages(*find_coco(root, split))


@pytest.fixture
def content(tmp_path):
    return coco_folders.write_coco(tmp_path, "train", 8)


def test_ids_with_gaps_crowds_run_lengths_and_missing_areas_are_read(tmp_path, content):
    images = read(tmp_path)
    assert images.classes == ("disc", "square")  # by id
    assert images.category_ids == (3, 7)
    assert images.learnable.tolist() == [True] * 7 + [False]
    annotations = {id: [a for a in content["annotations"] if a["image_id"] == id] for id in range(0, 80, 10)}
    for record in images:
        assert [3 + 4 * one.label for one in record.instances] == [a["category_id"] for a in annotations[record.id]]
        for one, theirs in zip(record.instances, annotations[record.id], strict=True):
            shape, size = theirs["segmentation"], (record.height, record.width)
            encoded = coco_mask.frPyObjects(shape, *size)
            truth = coco_mask.decode(encoded if isinstance(shape, dict) else coco_mask.merge(encoded))
            ours = one.bitmap(*size)
            assert np.array_equal(ours, truth)
            assert one.area == truth.sum()
            assert one.crowd == theirs["iscrowd"]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "train"),
        ("annotations/train.json", "images/train"),
        ("train/_annotations.coco.json", "train"),
        ("train.json", "images"),
        ("train.json", ""),
    ],
)
def test_common_layouts_are_found(tmp_path, content, annotations, images):
    new = tmp_path / "new"
    (new / annotations).parent.mkdir(parents=True, exist_ok=True)
    (new / images).mkdir(parents=True, exist_ok=True)
    (tmp_path / "annotations/instances_train2017.json").rename(new / annotations)
    for file in (tmp_path / "train2017").iterdir():
        file.rename(new / images / file.name)
    assert len(read(new)) == 8


def test_what_detectron2_leaves_out_is_left_out(tmp_path, content):
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 5]]  # two corners
    content["annotations"][1]["segmentation"] = [[1, 1, 5, 5], *[[9, 9, 20, 9, 20, 20]]]
    del content["annotations"][2]["iscrowd"]
    content["annotations"].append({**content["annotations"][3], "image_id": 4711})
    coco_folders.write_json(tmp_path, "train", content)
    images = read(tmp_path)
    kept = [one for record in images for one in record.instances]
    assert images.dropped == 1
    assert len(kept) == len(content["annotations"]) - 2
    assert [len(p) for p in kept[0].polygons] == [6]


FAULTS = {
    "there is no file": (
        lambda c: c["images"][0].update(file_name="x.jpg"),
        "1 of the 8 images .* missing.*x.jpg",
    ),
    "two images of one id": (lambda c: c["images"][1].update(id=0), "image 0 is listed twice"),
    "no name": (lambda c: c["images"][1].pop("file_name"), "image 10 has no file_name"),
    "no id": (lambda c: c["images"][1].pop("id"), "an entry has no 'id'"),
    "unknown category": (lambda c: c["annotations"][2].update(category_id=4), "annotation 2 has category 4"),
    "two categories of one id": (lambda c: c["categories"][0].update(id=3), "two categories with the same id"),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), "annotation 0 has the bbox None"),
    "no mask": (lambda c: c["annotations"][0].update(segmentation=[]), "annotation 0 has no segmentation"),
    "a polygon in no list": (lambda c: c["annotations"][1].update(segmentation=[1, 2, 3, 4, 5, 6]), "wrong type"),
    "no categories": (lambda c: c.pop("categories"), "has no categories"),
    "no images": (lambda c: c["images"].clear(), "lists no images"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_ends_in_a_sentence(tmp_path, content, fault):
    spoil, words = FAULTS[fault]
    spoil(content)
    coco_folders.write_json(tmp_path, "train", content)
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


def test_no_annotations_and_no_json_end_in_a_sentence(tmp_path, content):
    with pytest.raises(
        ValueError, match=r"no annotations of its val images: add annotations/instances_val2017\.json"
    ):
        find_coco(tmp_path, "val")
    (tmp_path / "annotations/instances_train2017.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read(tmp_path)


def test_sizes_that_the_json_does_not_say_come_from_the_files(tmp_path, content):
    changed = copy.deepcopy(content)
    for image in changed["images"]:
        del image["height"], image["width"]
    coco_folders.write_json(tmp_path, "train", changed)
    assert read(tmp_path).sizes.tolist() == [[i["height"], i["width"]] for i in content["images"]]


def test_an_image_of_another_size_is_named(tmp_path, content):
    content["images"][1]["width"] += 1
    coco_folders.write_json(tmp_path, "train", content)
    with pytest.raises(RunError, match=r"1\.png is 96 x 64 pixels, not 97 x 64"):
        examples.read_test_image(read(tmp_path)[1])


def test_objects_move_with_their_images(tmp_path, content):
    """Resized and perhaps flipped, an object's colour is where its box and its mask are; crowds are left out."""
    taken = Examples(read(tmp_path), (128, 160), 1333, seed=0)
    assert len(taken) == 7
    sides, flips = set(), set()
    for epoch in range(4):
        for index in range(7):
            pixels, target = taken[epoch, index]
            sides.add(min(pixels.shape[1:]))
            assert len(target.labels) == sum(not one.crowd for one in taken.images[index].instances)
            for label, box, mask in zip(target.labels, target.boxes, target.masks, strict=True):
                size = pixels.shape[1:]
                bitmap = (mask if isinstance(mask, np.ndarray) else rasterize(mask, *size)).astype(bool)
                assert bitmap.shape == size
                color = np.array(coco_folders.COLORS[3 + 4 * int(label)])
                assert (np.abs(pixels[:, bitmap].mean(1) - color) < 16).all()
                rows, columns = np.where(bitmap)
                found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.abs(box - found).max() < 2.5
            flips.add(bool(target.boxes[0, 0] < target.boxes[-1, 0]))
            again, _ = taken[epoch, index]
            assert np.array_equal(again, pixels)  # drawn from (seed, epoch, index)
    assert sides == {128, 160}
    assert flips == {True, False}


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_comes_in_the_place_of_an_unreadable_one(tmp_path, content, workers, capfd):
    """Of the same orientation, as a batch; drawn from (seed, epoch, index), so that all others stay as they are."""
    keys = [(epoch, index) for epoch in range(4) for index in range(7)]
    whole = Examples(read(tmp_path), (64, 80), 1333, seed=0)
    before = [whole[key] for key in keys]
    (tmp_path / "train2017/3.png").write_bytes(b"nothing")
    spoiled = Examples(read(tmp_path), (64, 80), 1333, seed=0)
    load = {"batch_size": None, "sampler": keys, "num_workers": workers, "collate_fn": lambda sample: sample}
    after = list(DataLoader(spoiled, **load))
    for (_, index), (pixels, target), (other, its) in zip(keys, before, after, strict=True):
        same = pixels.shape == other.shape and np.array_equal(pixels, other)
        assert same == np.array_equal(target.boxes, its.boxes) == (index != 3)
        assert (other.shape[2] > other.shape[1]) == whole.wide()[index]
    again = Examples(read(tmp_path), (64, 80), 1333, seed=0)
    assert all(np.array_equal(again[epoch, 3][0], after[7 * epoch + 3][0]) for epoch in (2, 0, 3, 1))
    said = [line for line in capfd.readouterr().err.splitlines() if "3.png cannot be read: " in line]
    assert [line.startswith("skipped: ") for line in said] == [True] * 2  # by each of the two that have met it
    (tmp_path / "train2017/5.png").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"\d\.png cannot be read: .*at least 2 of 7 images are unreadable"):
        [spoiled[key] for key in keys]


def test_the_only_image_of_its_orientation_is_replaced_by_one_of_the_other(tmp_path, content):
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in (0, 20, 30)]
    coco_folders.write_json(tmp_path, "train", content)
    (tmp_path / "train2017/3.png").write_bytes(b"nothing")
    taken = Examples(read(tmp_path), (64,), 1333, seed=0)
    assert taken.wide().tolist() == [False, False, True]
    assert taken[0, 2][0].shape == (3, 96, 64)


def test_boxes_that_are_cut_to_nothing_are_left_out(tmp_path, content):
    content["annotations"][0]["bbox"] = [500, 0, 20, 20]
    coco_folders.write_json(tmp_path, "train", content)
    images = read(tmp_path)
    _, target = Examples(images, (64,), 1333, seed=0)[0, 0]
    assert len(target.boxes) == len(target.masks) == len(target.labels) == len(images[0].instances) - 1


def test_a_data_set_without_objects_is_refused(tmp_path, content):
    coco_folders.write_json(tmp_path, "train", {**content, "annotations": []})
    with pytest.raises(ValueError, match="no object that could be learnt"):
        Examples(read(tmp_path), (64,), 1333, seed=0)


def test_batches_hold_one_orientation_and_lose_no_image():
    wide = np.random.default_rng(0).random(23) < 0.3
    batches = list(AspectBatches(wide, 4, range(60), seed=1))
    assert len(batches) == 60
    assert all(len({wide[index] for _, index in batch}) == 1 for batch in batches)
    drawn = [key for batch in batches for key in batch]
    assert len(set(drawn)) == len(drawn)
    assert {key for key in drawn if key[0] < 8} == {(epoch, index) for epoch in range(8) for index in range(23)}
    assert list(AspectBatches(wide, 4, range(40, 60), seed=1)) == batches[40:]  # resumed
    for processes, accumulation in ((2, 1), (1, 2), (2, 2)):
        parts = [
            list(AspectBatches(wide, 4, range(60), seed=1, rank=r, processes=processes, accumulation=accumulation))
            for r in range(processes)
        ]
        for step, batch in enumerate(batches):
            dealt = [
                key for part in parts for b in part[step * accumulation : (step + 1) * accumulation] for key in b
            ]
            assert sorted(dealt) == sorted(batch)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux's list of open files")
def test_workers_keep_no_file_descriptor_for_a_tensor(tmp_path, content):
    taken = Examples(read(tmp_path), (64,), 1333, seed=0)
    steps = AspectBatches(taken.wide(), 2, range(40), seed=0)
    before, kept = len(os.listdir("/proc/self/fd")), []
    loader = DataLoader(taken, batch_sampler=steps, collate_fn=collate, num_workers=2)
    for batch in loader:
        kept.append(batch.targets)
    assert len(kept) == 40
    assert len(os.listdir("/proc/self/fd")) - before < 16
    plain = [collate([taken[key] for key in keys]) for keys in steps]
    for one, targets in zip(plain, kept, strict=True):
        assert pickle.dumps(one.targets[0].boxes.tolist()) == pickle.dumps(targets[0].boxes.tolist())


def test_a_batch_gives_its_images_back():
    images = [np.random.default_rng(n).integers(0, 256, (3, 5 + n, 7), np.uint8) for n in range(2)]
    batch = collate([(image, None) for image in images])
    assert isinstance(batch, Batch)
    for one, image in zip(batch.images(torch.device("cpu")), images, strict=True):
        assert np.array_equal(one.numpy(), image)

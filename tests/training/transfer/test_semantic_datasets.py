"""The published layouts, made small: what is found, what labels become, and sentences for what is wrong."""

import numpy as np
import pytest
from PIL import Image

from training.transfer.semantic import datasets
from training.transfer.semantic.datasets import open_data

LABELS = {"voc": [0, 1, 20, 255], "cityscapes": [0, 7, 33, 18], "ade20k": [0, 1, 150, 2]}
CLASSES = {"voc": [0, 1, 20, 255], "cityscapes": [255, 0, 18, 255], "ade20k": [255, 0, 149, 1]}


def write(path, labels, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg" or "leftImg8bit" in path.name:
        Image.fromarray(np.full((side, 2 * side, 3), 90, np.uint8)).save(path)
        return
    mask = Image.fromarray(np.array(labels, np.uint8).repeat(side * side // 2).reshape(side, 2 * side))
    if "Class" in str(path):  # with a palette, as VOC's
        mask = mask.convert("P")
        mask.putpalette([90] * 768)
    mask.save(path)


def make_voc(root, train=("a", "b"), val=("v",), augmented=None):
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, names in (("train", train), ("val", val)):
        (lists / f"{name}.txt").write_text("\n".join(names) + "\n")
    for name in {*train, *val, *(augmented or ())}:
        write(root / "JPEGImages" / f"{name}.jpg", ())
    for name in (*train, *val):
        write(root / "SegmentationClass" / f"{name}.png", LABELS["voc"])
    for name in augmented or ():
        write(root / "SegmentationClassAug" / f"{name}.png", [1, 1, 1, 1])


def make_cityscapes(root, ending="labelIds", labels=None):
    for split, cities in {"train": ("bonn", "ulm"), "val": ("lindau",)}.items():
        for city in cities:
            name = f"{city}_000000_000019"
            write(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", ())
            write(root / "gtFine" / split / city / f"{name}_gtFine_{ending}.png", labels or LABELS["cityscapes"])


def make_ade20k(root):
    for split, names in {"training": ("x", "y"), "validation": ("z",)}.items():
        for name in names:
            write(root / "images" / split / f"{name}.jpg", ())
            write(root / "annotations" / split / f"{name}.png", LABELS["ade20k"])


MAKERS = {"voc": make_voc, "cityscapes": make_cityscapes, "ade20k": make_ade20k}
BELOW = {"voc": "VOCdevkit/VOC2012", "cityscapes": ".", "ade20k": "ADEChallengeData2016"}


@pytest.mark.parametrize("recipe", MAKERS)
def test_a_published_layout_is_read(recipe, tmp_path):
    MAKERS[recipe](tmp_path / BELOW[recipe])
    data = open_data(recipe, tmp_path)
    assert len(data.train) == 2
    assert len(data.val) == 1
    assert len(data.classes) == {"voc": 21, "cityscapes": 19, "ade20k": 150}[recipe]
    image, truth = data.train[0]
    assert image.shape == (3, 8, 16)
    assert truth.unique().tolist() == sorted(set(CLASSES[recipe]))
    assert truth[0, 0] == CLASSES[recipe][0]
    counts = [note for note in data.notes if "were found in" in note]
    assert len(counts) == 2
    assert not any("\n" in note for note in data.notes)
    assert open_data(recipe, tmp_path / BELOW[recipe]).train.files == data.train.files


def test_a_complete_data_set_says_nothing(tmp_path, monkeypatch):
    make_ade20k(tmp_path)
    monkeypatch.setattr(datasets, "ADE20K_COUNTS", {"training": 2, "validation": 1})
    assert not open_data("ade20k", tmp_path).notes


def test_train_aug_is_all_of_sbd_and_of_train_without_val(tmp_path):
    """VOC's own masks are better than SBD's where there are both."""
    make_voc(tmp_path, train=("a", "b"), val=("v", "w"), augmented=("b", "c", "d", "v"))
    data = open_data("voc", tmp_path)
    found = {image.stem: mask.parent.name for image, mask in data.train.files}
    own, augmented = "SegmentationClass", "SegmentationClassAug"
    assert found == {"a": own, "b": own, "c": augmented, "d": augmented}
    assert {mask.parent.name for _, mask in data.val.files} == {own}
    assert "VOC 2012 train_aug has 10,582 images, 4 were found" in data.notes[0]


def test_training_on_voc_alone_is_said(tmp_path):
    make_voc(tmp_path)
    assert "training on the 2 images of VOC 2012 train, while" in open_data("voc", tmp_path).notes[0]


def test_train_ids_of_cityscapes_are_taken_as_they_are(tmp_path):
    make_cityscapes(tmp_path, "labelTrainIds", [0, 18, 255, 5])
    assert open_data("cityscapes", tmp_path).val[0][1].unique().tolist() == [0, 5, 18, 255]


def test_names_of_ade20k_are_read_from_its_table(tmp_path):
    make_ade20k(tmp_path)
    assert open_data("ade20k", tmp_path).classes[:2] == ("class 1", "class 2")
    lines = [f"{i}\t0.1\t1\t2\t0\tthing {i}, of a kind" for i in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *lines]))
    assert open_data("ade20k", tmp_path).classes[::149] == ("thing 1", "thing 150")


def make_folders(root, splits=("train2017", "val2017"), names=("sky", "sea")):
    for split in splits:
        write(root / split / "a.jpg", ())
        write(root / "masks" / split / "a.png", [0, 1, 255, 0])
    (root / "masks" / "classes.txt").write_text("\n".join(names))
    return root


@pytest.mark.parametrize("splits", [("train2017", "val2017"), ("training", "validation"), ("train", "val")])
def test_any_folders_of_images_and_masks_are_read(splits, tmp_path):
    make_folders(tmp_path, splits)
    data = open_data("voc", tmp_path, tmp_path / "masks")
    assert data.classes == ("sky", "sea")
    assert data.train[0][1].unique().tolist() == [0, 1, 255]
    assert data.val.files[0][0].parent.name == splits[1]
    assert not data.notes


def test_a_label_without_a_class_is_named(tmp_path):
    make_folders(tmp_path, names=("sky",))
    with pytest.raises(ValueError, match=r"a\.png has the unknown label 1: valid are 0 to 0"):
        open_data("voc", tmp_path, tmp_path / "masks").train[0]


def spoil(recipe, root, part):
    for file in sorted((root / BELOW[recipe]).rglob(part)):
        file.unlink() if file.is_file() else file.rename(file.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("recipe", "part", "sentence"),
    [
        ("voc", "SegmentationClass", "VOC2012 holds no SegmentationClass, needed for VOC 2012"),
        ("voc", "train.txt", "train.txt of VOC 2012 is missing"),
        ("voc", "a.png", r"1 of 4 images and masks are missing, the first is \S+/SegmentationClass/a.png"),
        ("voc", "v.jpg", r"1 of 2 images and masks are missing, the first is \S+/JPEGImages/v.jpg"),
        ("cityscapes", "gtFine", "holds no gtFine, needed for Cityscapes"),
        ("cityscapes", "*_labelIds.png", "4 images and masks are missing"),
        ("cityscapes", "lindau_*_leftImg8bit.png", "Cityscapes val has 500 images, none was found"),
        ("ade20k", "annotations", "holds no annotations, needed for ADE20K"),
        ("ade20k", "z.jpg", "ADE20K validation has 2,000 images, none was found"),
        ("ade20k", "x.png", "1 of 4 images and masks are missing"),
    ],
)
def test_what_is_missing_is_counted_and_named(recipe, part, sentence, tmp_path):
    MAKERS[recipe](tmp_path / BELOW[recipe])
    spoil(recipe, tmp_path, part)
    with pytest.raises(ValueError, match=sentence) as error:
        open_data(recipe, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda root: (root / "masks" / "classes.txt").unlink(),
            "there is no file .*classes.txt: give class names",
        ),
        (lambda root: (root / "masks" / "classes.txt").write_text(""), "has 0 names"),
        (lambda root: (root / "train").mkdir(), "one folder for train, .* but there is train and train2017"),
        (lambda root: (root / "val2017").rename(root / "test"), "one folder for val, .* but there is none"),
        (lambda root: (root / "val2017" / "a.jpg").rename(root / "val2017" / "b.jpg"), "have no mask"),
    ],
)
def test_what_is_wrong_with_folders_is_named(change, sentence, tmp_path):
    change(make_folders(tmp_path))
    with pytest.raises(ValueError, match=sentence) as error:
        open_data("voc", tmp_path, tmp_path / "masks")
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        open_data("voc", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--classes needs --masks"):
        open_data("voc", tmp_path, classes=tmp_path)

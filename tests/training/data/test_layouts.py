"""Well-known data sets are found below their folders, and counted."""

from pathlib import Path

import pytest

from training.data.images import open_images
from training.data.layouts import LAYOUTS

TREES = {
    "coco": ["train2017/1.jpg", "val2017/2.jpg", "annotations/a.json", "stuffthingmaps/train2017/1.png"],
    "coco+": ["train2017/1.jpg", "unlabeled2017/3.jpg", "val2017/2.jpg"],
    "imagenet": ["train/n01/1.JPEG", "train/n02/3.JPEG", "val/n01/2.JPEG"],
    "bdd100k": ["images/100k/train/1.jpg", "images/100k/val/2.jpg", "images/10k/train/4.jpg"],
}
WANTED = {
    "coco": {"train2017/1.jpg"},
    "coco+": {"train2017/1.jpg", "unlabeled2017/3.jpg"},
    "imagenet": {"train/n01/1.JPEG", "train/n02/3.JPEG"},
    "bdd100k": {"images/100k/train/1.jpg"},
}


def make(root: Path, files: list[str]) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def found(data: Path, layout: str | None) -> set[str]:
    images = open_images(str(data), layout=layout)
    return {images.name(index) for index in range(len(images))}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_folder_of_a_data_set(tmp_path, layout):
    root = make(tmp_path, TREES[layout])
    assert found(root, layout) == {str(root / file) for file in WANTED[layout]}
    assert len(found(root, None)) == sum(not file.endswith("json") for file in TREES[layout])
    expected = LAYOUTS[layout].images
    assert LAYOUTS[layout].check_count(root, expected) is None
    miscount = LAYOUTS[layout].check_count(root, expected - 1000)
    assert f"has {expected:,} images, {expected - 1000:,} were found in {root}: check for" in miscount


@pytest.mark.parametrize(("layout", "folder"), [("coco", "train2017"), ("bdd100k", "images/100k/train")])
def test_the_folder_of_the_images_themselves(tmp_path, layout, folder):
    root = make(tmp_path, TREES[layout])
    assert found(root / folder, layout) == {str(root / file) for file in WANTED[layout]}
    assert LAYOUTS[layout].check_count(root / folder, 9) is not None


@pytest.mark.parametrize("between", ["images", "images/100k"])
def test_a_folder_between_that_of_the_data_set_and_its_images(tmp_path, between, monkeypatch):
    root = make(tmp_path, TREES["bdd100k"])
    wanted = {str(root / file) for file in WANTED["bdd100k"]}
    assert found(root / between, "bdd100k") == wanted
    assert LAYOUTS["bdd100k"].check_count(root / between, 9) is not None
    monkeypatch.chdir(root)
    assert found(Path(between), "bdd100k") == wanted
    (root / "images/100k/train/1.jpg").unlink()
    (root / "images/100k/train").rmdir()
    with pytest.raises(ValueError, match="holds images/100k/val, but for BDD100K train no images/100k/train"):
        open_images(between, layout="bdd100k")


def test_names_that_are_no_folders_are_not_counted():
    assert LAYOUTS["imagenet"].check_count(Path("hf:someone/train"), 9) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_other_folder_is_taken_as_it_is(tmp_path, layout):
    root = make(tmp_path / "mine", ["a/1.jpg", "b/2.png"])
    assert found(root, layout) == {str(root / "a/1.jpg"), str(root / "b/2.png")}
    assert LAYOUTS[layout].check_count(root, 2) is None


@pytest.mark.parametrize(
    ("layout", "files", "words"),
    [
        ("coco", ["val2017/2.jpg"], "holds val2017, but for COCO train2017 no train2017: complete it, or set"),
        (
            "coco+",
            ["train2017/1.jpg"],
            r"for COCO train2017 \+ unlabeled2017 no unlabeled2017: complete",
        ),
        ("imagenet", ["val/n01/2.JPEG"], "holds val, but for ImageNet-1k train no train: complete it"),
        ("bdd100k", ["images/100k/test/1.jpg"], "but for BDD100K train no images/100k/train"),
    ],
)
def test_other_parts_alone_are_not_trained_on(tmp_path, layout, files, words):
    root = make(tmp_path, files)
    with pytest.raises(ValueError, match=words):
        open_images(str(root), layout=layout)
    assert len(found(root, None)) == 1


def test_parquet_files_keep_their_splits(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, count in (("train/0.parquet", 2), ("val/0.parquet", 3)):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        datasets.Dataset.from_dict({"image": [{"bytes": b"", "path": None}] * count}).to_parquet(
            tmp_path / "data" / name
        )
    for split, count in (("train", 2), ("validation", 3)):
        assert len(open_images(str(tmp_path / "data"), split, layout="imagenet")) == count

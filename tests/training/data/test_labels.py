"""Labelled images, by class folders and by tables."""

import os
import shutil
from collections import Counter
from pathlib import Path

import datasets
import pytest
from image_files import refuse_listing
from PIL import Image

from training.data.labels import draw_share, open_labeled
from training.evaluation.features import open_parts


def paint(folder: Path, count: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")


def test_the_split_is_the_first_folder_alone(tmp_path):
    for split in ("train", "val"):
        for name in ("train", "bullet_train", "cat"):
            paint(tmp_path / split / name)
    for split, folder in (("train", "train"), ("validation", "val")):
        found = open_labeled(str(tmp_path), split)
        assert found.classes == ["bullet_train", "cat", "train"]
        assert sorted(found.labels) == [0, 0, 1, 1, 2, 2]
        assert all(path.startswith(f"{tmp_path}/{folder}/") for path in found.images.paths)


def test_a_split_of_another_name_is_its_folder_alone(tmp_path):
    for name in ("mine/cat", "theirs/dog"):
        paint(tmp_path / name)
    found = open_labeled(str(tmp_path), "mine")
    assert (found.classes, found.labels) == (["cat"], [0, 0])


def test_the_class_is_the_folder_below_the_split(tmp_path):
    for name in ("cat/indoor", "cat/outdoor", "dog/indoor"):
        paint(tmp_path / "train" / name)
    found = open_labeled(str(tmp_path), "train")
    assert (found.classes, found.labels) == (["cat", "dog"], [0, 0, 0, 0, 1, 1])


def test_links_to_class_folders_are_followed(tmp_path):
    paint(tmp_path / "elsewhere")
    paint(tmp_path / "data" / "train" / "cat")
    (tmp_path / "data" / "train" / "dog").symlink_to(tmp_path / "elsewhere")
    assert open_labeled(str(tmp_path / "data"), "train").labels == [0, 0, 1, 1]


def test_a_split_that_is_not_there(tmp_path):
    paint(tmp_path / "train" / "cat")
    with pytest.raises(ValueError, match=r"no folder for the split 'validation' \(there are: train\)"):
        open_labeled(str(tmp_path), "validation")


def test_names_of_classes_can_be_printed(tmp_path):
    for name in (b"caf\xe9", b"bar"):
        paint(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"train", name))))
    assert open_labeled(str(tmp_path), "train").classes == ["bar", r"caf\xe9"]
    Image.new("RGB", (8, 8)).save(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"train", b"\xe9.png")))
    with pytest.raises(ValueError, match=r"\\xe9\.png has no class: put it into a folder in .*/train that"):
        open_labeled(str(tmp_path), "train")


def test_a_split_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    for split in ("train", "val"):
        paint(tmp_path / split / "cat")
    refuse_listing(monkeypatch, "val")
    with pytest.raises(ValueError, match=r"/val cannot be listed \(Permission denied\): make it readable"):
        open_labeled(str(tmp_path), "train")


@pytest.mark.parametrize("text", ["https://example.org/1.jpg", "iVBORw0KGgo" * 1000, "/nowhere/1.jpg"])
def test_a_column_of_text_is_refused_before_any_image_is_read(tmp_path, text):
    for split in ("train", "validation"):
        rows = datasets.Dataset.from_dict({"url": [text] * 3, "kind": [0, 1, 0]})
        rows.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(
        ValueError,
        match=r"column 'url' holds text that is not the path of a local file .* --image-column one of kind$",
    ):
        open_labeled(str(tmp_path), "train", "url", "kind")


def table(folder: Path, labels: list) -> Path:
    image = [{"bytes": b"never read", "path": None}] * len(labels)
    rows = datasets.Dataset.from_dict({"img": image, "kind": labels}).cast_column(
        "img", datasets.Image(decode=False)
    )
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize(
    ("labels", "numbers", "classes"),
    [
        (["dog", "cat", "dog"], [1, 0, 1], ["cat", "dog"]),
        ([True, False, True], [1, 0, 1], ["False", "True"]),
        ([0, 2, 1], [0, 2, 1], ["0", "1", "2"]),
    ],
)
def test_labels_of_tables(tmp_path, labels, numbers, classes):
    found = open_labeled(str(table(tmp_path / "data", labels)), "train", "img", "kind")
    assert (found.labels, found.classes) == (numbers, classes)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([0, None, 1], "row 1 has no label"),
        ([[0], [1]], "integers, text or booleans"),
        ([0.5, 1.0], "integers, text or booleans"),
        ([0, -1], "row 1 has label -1"),
        ([0, 10**9], "label 1000000000 among 2 classes"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, reason):
    with pytest.raises(ValueError, match=f"split 'train', column 'kind': .*{reason}"):
        open_labeled(str(table(tmp_path / "data", labels)), "train", "img", "kind")


def test_parquet_files_are_read_whatever_is_beside_them(tmp_path):
    folder = table(tmp_path / "data", [0, 1])
    (folder / "train.parquet").rename(folder / "bullet_train.parquet")
    shutil.copy(folder / "bullet_train.parquet", folder / "cat.parquet")
    for name in ("_SUCCESS", "LICENSE", "1.json"):
        (folder / name).write_bytes(b"")
    assert open_labeled(str(folder), "train", "img", "kind").labels == [0, 1, 0, 1]


def test_text_is_never_numbered_in_two_ways(tmp_path):
    folder = table(tmp_path / "data", ["cat", "dog"])
    table(tmp_path / "more", ["ant", "dog"])
    (tmp_path / "more" / "train.parquet").rename(folder / "validation.parquet")
    with pytest.raises(
        ValueError, match="train and validation have different classes, only one of them has ant, cat"
    ):
        open_parts(str(folder), "train", "validation", "img", "kind")


def test_a_share_of_the_images_keeps_every_class():
    labels = [0] * 200 + [1] * 50 + [3] * 3
    few = draw_share(labels, 0.1)
    assert Counter(labels[i] for i in few) == {0: 20, 1: 5, 3: 1}
    assert draw_share(labels, 0.1) == few != draw_share(labels[::-1], 0.1)
    assert draw_share(labels, 1.0) == list(range(253))

"""COCO-Stuff-27 against its published totals, and in miniature on the disk; what options open."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluation.benchmarks import FACTS, coco_stuff, coco_stuff_classes, curated, open_benchmark

SHA256 = {  # of the sorted names, one a line
    "val": "7c629734c88f1a74bba6311e01d4d9fe976df84f07cb4fc86452ce5116e51655",
    "train": "3b837594a81880a70f177afab906fc45147d8b9c2c4f51132f784e41941812f9",
}


def test_the_mapping_has_the_published_totals():
    names, kinds, labels = coco_stuff_classes()
    assert len(set(names)) == len(names) == 27
    assert kinds == {"things": list(range(12)), "stuff": list(range(12, 27))}
    assert sorted(labels) == list(range(182))
    sizes = np.bincount(list(labels.values())).tolist()
    assert sizes == [6, 6, 10, 10, 8, 8, 8, 10, 6, 1, 10, 8, 2, 6, 4, 11, 4, 11, 7, 2, 6, 11, 9, 2, 6, 5, 5]
    assert all((label <= 90) == (labels[label] < 12) for label in labels)
    absent = json.loads((FACTS / "cocostuff27.json").read_text())["without_annotations"]
    assert len(absent) == 11
    assert len(set(labels) - set(absent)) == 171
    assert max(absent) <= 90
    examples = {0: "person-things", 2: "vehicle-things", 156: "sky-stuff", 168: "plant-stuff", 154: "water-stuff"}
    assert {label: names[labels[label]] for label in examples} == examples


@pytest.mark.parametrize(("split", "number"), [("val", 2175), ("train", 49629)])
def test_the_lists_are_the_curated_ones(split, number):
    names = curated(split)
    assert len(set(names)) == len(names) == number
    assert hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest() == SHA256[split]


def write_coco(root: Path, images: str, maps: str, names: list[str]) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        labels = np.append(rng.integers(0, 182, 29), 255).reshape(5, 6).repeat(8, 0).repeat(8, 1)
        for folder, pixels in ((images, rng.integers(0, 256, (40, 48, 3))), (maps, labels)):
            path = root / folder / f"{name}{'.jpg' if folder == images else '.png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("split", "images", "maps"),
    [
        ("val", "val2017", "stuffthingmaps/val2017"),
        ("val", "images/val2017", "annotations/val2017"),
        ("train", "train2017", "annotations/stuffthingmaps/train2017"),
    ],
)
def test_coco_is_found_in_the_usual_places(tmp_path, split, images, maps):
    names = curated(split)
    write_coco(tmp_path, images, maps, [*names[3:6], "999999999999"])
    (tmp_path / maps / f"{names[4]}.png").unlink()
    found = coco_stuff(tmp_path, split, 32)
    assert [path.stem for path, _ in found.images.files] == [names[3], names[5]]
    assert found.listed == len(names)
    assert len(found.missing) == len(names) - 2
    assert found.missing[:4] == (*names[:3], names[4])
    image, truth = found.images[0]
    assert (image.shape, truth.shape) == ((3, 32, 32), (32, 32))
    with Image.open(tmp_path / maps / f"{names[3]}.png") as labels:
        fine = np.array(labels)[4::8, 4::8]  # 40 x 48 to 32 x 38, of which the columns 3 to 35
    classes = coco_stuff_classes()[2] | {255: 255}
    assert truth[3::6, 1].tolist()[:5] == [classes[label] for label in fine[:, 0].tolist()]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*val2017 or .*images/val2017"):
        coco_stuff(tmp_path)
    (tmp_path / "val2017").mkdir()
    with pytest.raises(ValueError, match=r"there is no folder .*stuffthingmaps/val2017 or "):
        coco_stuff(tmp_path)
    write_coco(tmp_path, "val2017", "stuffthingmaps/val2017", ["999999999999"])
    with pytest.raises(ValueError, match="none of the 2,175 listed images is in "):
        coco_stuff(tmp_path)


def opened(data: str, **options: object) -> object:
    return open_benchmark(data, **{"masks": None, "names": None, "split": "val", "size": None, **options})


def test_options_fit_the_data(tmp_path):
    masks, names = tmp_path / "masks", tmp_path / "names.txt"
    for wrong in ({"data": "scenes", "masks": masks}, {"data": "coco-stuff:x", "masks": masks}, {"data": "x"}):
        with pytest.raises(ValueError, match="--masks and --data FOLDER belong together"):
            opened(**wrong)
    with pytest.raises(ValueError, match="--classes is only for --data FOLDER"):
        opened("scenes", names=names)
    with pytest.raises(ValueError, match=r"there is no folder .*masks for --masks"):
        opened(str(tmp_path), masks=masks)
    masks.mkdir()
    names.write_text("\n\n")
    with pytest.raises(ValueError, match=r"names\.txt has 0 names"):
        opened(str(tmp_path), masks=masks, names=names)

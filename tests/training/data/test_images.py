"""Where images come from: folders, Parquet files, and data sets by name."""

import re

import pytest
from image_files import encode, filled

from slotcon_hub.images import decode
from training.data.images import open_images
from training.data.tables import ImageTable, split_of

datasets = pytest.importorskip("datasets")


def value_of(source, index):
    return int(decode(source.read(index))[0, 0, 0])


def test_nothing_to_read(tmp_path):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "file.tar").write_bytes(b"")
    for name in ("missing", "file.tar", "missing/inner"):
        with pytest.raises(ValueError, match=rf"there is no folder \S*{name}: name a folder of images$"):
            open_images(str(tmp_path / name))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("")
    for name in ("empty", "text"):
        with pytest.raises(ValueError, match=rf"{name} holds no .* file, at any depth: name"):
            open_images(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"there is no file .*missing.parquet: give --data"):
        open_images(str(tmp_path / "missing.parquet"))


def test_a_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(b"")
    assert len(open_images("~")) == 1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keep what ``datasets`` converts out of the home, and the process off the network."""
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def write_table(file, images, column="image"):
    file.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict({column: images, "label": list(range(len(images)))})
    table.to_parquet(file)


def embedded(*values, path=None):
    return [{"bytes": encode(filled(value), "PNG"), "path": path} for value in values]


def test_parquet_with_bytes(cache):
    write_table(cache / "some.parquet", [*embedded(10, path="x/ten.png"), *embedded(20)])
    table = open_images(str(cache / "some.parquet"), split="validation")  # a file is what it is
    assert [value_of(table, i) for i in range(len(table))] == [10, 20]
    assert [table.name(i) for i in range(2)] == ["row 0 (x/ten.png)", "row 1"]


def test_parquet_with_paths(cache):
    filled(30).save(cache / "thirty.png")
    paths = [str(cache / "thirty.png"), str(cache / "gone.png"), None]
    write_table(cache / "t" / "paths.parquet", [{"bytes": None, "path": path} for path in paths], "image")
    write_table(cache / "t" / "strings.parquet", paths, "image")
    for file in ("paths", "strings"):
        table = open_images(str(cache / "t" / f"{file}.parquet"), column="image")
        assert (len(table), value_of(table, 0)) == (3, 30)
        assert [table.name(i) for i in range(3)] == [f"row 0 ({paths[0]})", f"row 1 ({paths[1]})", "row 2"]
        for index, reason in ((1, "No such file"), (2, "row 2 is empty")):
            with pytest.raises(OSError, match=reason):
                table.read(index)


SPLITS = {
    "names": {"train-0-of-2.parquet": 1, "train-1-of-2.parquet": 2, "validation-0-of-1.parquet": 3},
    "folders": {"train/0000.parquet": 1, "train/0001.parquet": 2, "val/0000.parquet": 3},
    "deeper": {"data/train/a.parquet": 1, "data/train/b.parquet": 2, "data/valid/a.parquet": 3},
    "one of them": {"train.parquet": 1, "train_2.parquet": 2, "validation.parquet": 3, "extra.parquet": 4},
    "none": {"data-00000-of-00002.parquet": 1, "sub/data-00001-of-00002.parquet": 2},
}


@pytest.mark.parametrize("layout", SPLITS)
def test_parquet_splits(cache, layout):
    for name, value in SPLITS[layout].items():
        write_table(cache / "tables" / name, embedded(value))

    def values(split):
        table = open_images(str(cache / "tables"), split)
        return sorted(value_of(table, i) for i in range(len(table)))

    assert values("train") == [1, 2]
    assert values("train[:1]") == [1]
    with pytest.raises(
        ValueError, match=r"tables, split 'test', could not be loaded: .* Should be one of \['train'"
    ):
        values("test")
    if layout != "none":
        assert values("validation") == [3]
        assert values("train+validation") == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.parquet", "train"),
        ("training_3.parquet", "train"),
        ("train-00000-of-00001-b4aaeceff1d90ecb.parquet", "train"),
        ("validation-00000-of-00002.snappy.parquet", "validation"),
        ("mnist-test-00000-of-00001.parquet", "test"),
        ("data/val/cat.parquet", "validation"),
        ("test/train_station.parquet", "test"),
        ("data/unlabeled-00000-of-00004.parquet", "unlabeled"),
        ("bullet_train.parquet", None),
        ("train_station.parquet", None),
        ("trains/0.parquet", None),
        ("more/unlabeled-00000-of-00004.parquet", None),
        ("part-00000-of-00004.parquet", None),
        ("latest.parquet", None),
    ],
)
def test_a_split_is_a_folder_or_a_whole_name(path, split):
    assert split_of(path) == split


def test_words_in_names_of_parquet_files_are_no_splits(cache):
    for value, name in enumerate(("cat", "dog", "bullet_train")):
        write_table(cache / "tables [1]" / f"{name}.parquet", embedded(value))
    for streaming in (False, True):
        assert len(open_images(str(cache / "tables [1]"), streaming=streaming)) == 3
        assert len(open_images(str(cache / "tables [1]" / "cat.parquet"), streaming=streaming)) == 1


def test_parquet_files_of_no_split_are_named(cache, capfd):
    for value, name in enumerate(("train-0", "train-1", "extra")):
        write_table(cache / "tables" / f"{name}.parquet", embedded(value))
    assert len(open_images(str(cache / "tables"))) == 2
    assert re.search(
        r"note: skipped 1 of 3 Parquet files that name no split, .*/extra\.parquet: to use it",
        capfd.readouterr().err,
    )


def test_parquet_files_that_hide_splits_are_refused(cache):
    for value, name in enumerate(("train_images", "val_images")):
        write_table(cache / "tables" / f"{name}.parquet", embedded(value))
    with pytest.raises(
        ValueError, match=r"names of Parquet files .* hold train and validation, but begin with none"
    ):
        open_images(str(cache / "tables"))


def test_images_beside_parquet_files_are_refused(cache):
    write_table(cache / "tables" / "00000.parquet", embedded(1))
    (cache / "tables" / "00000").mkdir()
    for name in ("1.jpg", "2.PNG", "LICENSE"):
        (cache / "tables" / "00000" / name).touch()
    with pytest.raises(ValueError, match=r"holds 2 images beside 1 Parquet files, .* give --data a folder"):
        open_images(str(cache / "tables"))


def test_parquet_of_other_splits_only(cache):
    for name in ("validation-0.parquet", "test-0.parquet"):
        write_table(cache / "tables" / name, embedded(1))
    with pytest.raises(ValueError, match=r'Unknown split "train". Should be one of \[\'test\', \'validation\'\]'):
        open_images(str(cache / "tables"))


def test_parquet_without_images(cache):
    write_table(cache / "t.parquet", embedded(1))
    with pytest.raises(ValueError, match=r"no column 'img': give --image-column one of image, label$"):
        open_images(str(cache / "t.parquet"), column="img")
    with pytest.raises(ValueError, match="column 'label' holds no images: give --image-column one of"):
        open_images(str(cache / "t.parquet"), column="label")
    with pytest.raises(ValueError, match="the data set has no rows"):
        ImageTable(datasets.Dataset.from_dict({"image": []}), "image")


def test_damaged_parquet(cache):
    (cache / "t.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match=r"t.parquet, split 'train', could not be loaded: .*[Pp]arquet"):
        open_images(str(cache / "t.parquet"))


def test_hub_name_that_does_not_exist(cache):
    with pytest.raises(ValueError, match=r"^hf:no-one/nothing, split 'dev', could not be loaded: .*\S$"):
        open_images("hf:no-one/nothing", "dev")


def test_reasons_of_many_lines_become_one(cache):
    (cache / "README.md").write_text(
        "---\nconfigs:\n- {config_name: a, data_files: a.parquet}\n- {config_name: b, data_files: b.parquet}\n---\n"
    )
    for name in "ab":
        write_table(cache / f"{name}.parquet", embedded(1))
    with pytest.raises(
        ValueError, match=r"Config name is missing\. Please pick one .*'b'.* colon: --data hf:\S*:<configuration>"
    ) as raised:
        open_images(f"hf:{cache}")
    assert "\n" not in str(raised.value)


def test_a_configuration_follows_a_colon(cache):
    (cache / "README.md").write_text(
        "---\nconfigs:\n- {config_name: a, data_files: a.parquet}\n- {config_name: b, data_files: b.parquet}\n---\n"
    )
    for value, name in ((10, "a"), (20, "b")):
        write_table(cache / f"{name}.parquet", embedded(value))
        assert value_of(open_images(f"hf:{cache}:{name}"), 0) == value
        assert len(open_images(f"hf:{cache}:{name}", streaming=True)) == 1
    with pytest.raises(ValueError, match=r":c, split 'train', could not be loaded: .*'c' not found"):
        open_images(f"hf:{cache}:c")


@pytest.mark.parametrize("data", ["hf:{}", "hf:{}/script.py", "{}"])
def test_scripts_are_not_executed(cache, data):
    folder = cache / "script"
    folder.mkdir()
    ran = cache / "ran"
    (folder / "script.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    with pytest.raises(ValueError, match=r"scripts are no longer supported|holds no"):
        open_images(data.format(folder))
    assert not ran.exists()


def test_a_digest_tells_files_from_others_wherever_they_are(tmp_path):
    for place in ("one", "two/deeper", "three"):
        for name in ("train2017/a.jpg", "train2017/inner/b.jpg", "unlabeled2017/c.jpg"):
            (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name).touch()
    (tmp_path / "three/train2017/a.jpg").rename(tmp_path / "three/train2017/d.jpg")
    one, two, three = (
        [open_images(str(tmp_path / place), layout=layout).digest() for layout in ("coco", "coco+")]
        for place in ("one", "two/deeper", "three")
    )
    assert one == two
    assert len({*one, *three}) == 4
    assert open_images(str(tmp_path / "one/train2017")).digest() == one[0]


def test_a_digest_tells_tables_from_others(cache):
    rows = [*embedded(10, path="x/ten.png"), *embedded(20), *embedded(30)]
    longer = [{"bytes": rows[1]["bytes"] + b"0", "path": None}]
    tables = {
        "one/a": rows,
        "two/b": rows,
        "other_name": [*embedded(10, path="x/eleven.png"), *rows[1:]],
        "other_order": [rows[1], rows[0], rows[2]],
        "other_bytes": [rows[0], *longer, rows[2]],
        "fewer": rows[:2],
    }
    for name, images in tables.items():
        write_table(cache / f"{name}.parquet", images)
    digests = [open_images(str(cache / f"{name}.parquet")).digest() for name in tables]
    assert digests[0] == digests[1]
    assert len(set(digests)) == len(tables) - 1

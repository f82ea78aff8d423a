"""The demo's data set: scenes are reproducible, balanced and labelled; its files appear once and whole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import scenes
from training.data.scenes import CLASSES, PALETTE, make_scene, prepare


@pytest.fixture(scope="module")
def hundred():
    return [make_scene(seed) for seed in range(100)]


@pytest.fixture(scope="module")
def pixels(hundred):
    """Pixels of each class in each scene: 100 x classes."""
    return np.array([np.bincount(mask.ravel(), minlength=len(CLASSES)) for _, mask in hundred])


def test_every_class_has_its_own_color():
    assert PALETTE.shape == (len(CLASSES), 3)
    assert PALETTE.dtype == np.uint8
    assert len(set(map(tuple, PALETTE.tolist()))) == len(set(CLASSES)) == 12


def test_a_seed_names_one_scene(hundred):
    np.random.seed(3)  # the global state must not matter
    for old, new in zip(hundred[7], make_scene(7), strict=True):
        assert old.tobytes() == new.tobytes()


def test_other_seeds_are_other_scenes(hundred):
    assert len({image.tobytes() for image, _ in hundred}) == 100
    assert len({mask.tobytes() for _, mask in hundred}) == 100


# Rounded, so that another libm does not disturb them. A new image needs a new scenes.VERSION, too.
@pytest.mark.parametrize(
    ("seed", "color", "share"),
    [
        (1, (167.6, 171.8, 129.4), {"sky": 0.2872, "sea": 0.1473, "grass": 0.4235, "house": 0.142}),
        (42, (157.8, 143.9, 119.4), {"sky": 0.328, "grass": 0.132, "sand": 0.33, "car": 0.132, "cow": 0.078}),
    ],
)
def test_golden_statistics(seed, color, share):
    image, mask = make_scene(seed)
    assert scenes.VERSION == 1
    assert image.mean((0, 1)) == pytest.approx(color, abs=0.5)
    assert {CLASSES[i]: (mask == i).mean() for i in np.unique(mask)} == pytest.approx(share, abs=0.002)


@pytest.mark.parametrize("size", [(128, 192), (64, 64), (150, 101), (224, 300)])
def test_any_size(size):
    for seed in range(3):
        image, mask = make_scene(seed, *size)
        assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
        assert (mask.shape, mask.dtype) == (size, np.uint8)
        assert mask.max() < len(CLASSES)


def test_three_to_eight_classes_a_scene(pixels):
    present = (pixels > 0).sum(1)
    assert present.min() >= 3
    assert present.max() <= 8
    assert len(set(present.tolist())) >= 4  # and not always the same number


def test_classes_are_balanced(pixels):
    assert pixels.shape == (100, len(CLASSES))  # no label beyond the last class
    assert (pixels > 0).mean(0).min() >= 0.05
    assert pixels.sum(0).max() / pixels.sum() <= 0.45


def test_segments_are_large_enough_to_see(pixels):
    assert (pixels[pixels > 0] >= 16 * 16).mean() > 0.9


def test_labels_follow_the_image(hundred):
    """Within a scene, labels explain most of the color: the mask of another scene explains far less."""

    def explained(image, mask):
        image = image.reshape(-1, 3).astype(np.float64)
        groups = [image[mask.ravel() == i] for i in np.unique(mask)]
        return 1 - sum(g.var(0).sum() * len(g) for g in groups) / (image.var(0).sum() * len(image))

    own = [explained(image, mask) for image, mask in hundred]
    other = [explained(image, hundred[i - 1][1]) for i, (image, _) in enumerate(hundred)]
    assert np.mean(own) > 0.5
    assert np.mean(own) > np.mean(other) + 0.15


def test_color_alone_is_no_label(hundred):
    """The nearest mean color over all scenes names fewer than half of the pixels."""
    colors = np.concatenate([image[::4, ::4].reshape(-1, 3) for image, _ in hundred]).astype(np.float64)
    labels = np.concatenate([mask[::4, ::4].ravel() for _, mask in hundred])
    means = np.stack([colors[labels == i].mean(0) for i in range(len(CLASSES))])
    nearest = ((colors[:, None] - means) ** 2).sum(-1).argmin(1)
    assert 1.5 / len(CLASSES) < (nearest == labels).mean() < 0.5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return folder, prepare(folder, train=4, val=3, seed=5)


def test_prepare_writes_images_and_masks(prepared):
    folder, found = prepared
    assert [path.name for path in folder.iterdir()] == ["scenes-1-4-3-5"]
    assert sorted(path.name for path in found.train.iterdir()) == [f"00000{i}.jpg" for i in range(4)]
    stems = sorted(path.stem for path in found.val_images.glob("*.jpg"))
    assert stems == sorted(path.stem for path in found.val_masks.glob("*.png")) == ["000000", "000001", "000002"]
    for stem in stems:
        with (
            Image.open(found.val_images / f"{stem}.jpg") as image,
            Image.open(found.val_masks / f"{stem}.png") as mask,
        ):
            assert image.size == mask.size == (192, 128)
            assert image.mode == "RGB"


def test_files_hold_the_scenes(prepared, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(scenes, "make_scene", lambda seed: drawn.append(seed) or make_scene(seed))
    found = prepare(tmp_path, train=4, val=3, seed=5)
    assert len(set(drawn)) == 7  # no scene twice, so train and val are apart
    for i, seed in enumerate(drawn[4:]):
        image, mask = make_scene(seed)
        with Image.open(found.val_masks / f"00000{i}.png") as stored:
            assert np.array_equal(np.asarray(stored), mask)
            assert np.array_equal(np.asarray(stored.convert("RGB")), PALETTE[mask])
        with Image.open(found.val_images / f"00000{i}.jpg") as stored:
            assert abs(np.asarray(stored, np.float64) - image).mean() < 6
    for old, new in zip(sorted(prepared[1].train.iterdir()), sorted(found.train.iterdir()), strict=True):
        assert old.read_bytes() == new.read_bytes()


def test_seeds_and_sizes_have_scenes_of_their_own(prepared, monkeypatch, tmp_path):
    drawn = {}
    for train, val, seed in ((2, 2, 0), (3, 2, 0), (2, 2, 1)):
        seeds = drawn.setdefault((train, val, seed), [])
        monkeypatch.setattr(scenes, "make_scene", lambda s, to=seeds: to.append(s) or make_scene(s, 64, 64))
        prepare(tmp_path, train=train, val=val, seed=seed)
    assert len(list(tmp_path.iterdir())) == 3
    assert set(drawn[2, 2, 0]) < set(drawn[3, 2, 0])  # a longer set only adds scenes
    assert not set(drawn[2, 2, 0]) & set(drawn[2, 2, 1])


def test_prepare_finds_what_it_wrote(prepared, monkeypatch):
    folder, found = prepared
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(scenes, "make_scene", None)  # would raise if it were called
    assert prepare(folder, train=4, val=3, seed=5) == found
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_interrupted_preparation_leaves_nothing(monkeypatch, tmp_path):
    def interrupted(seed):
        if list(tmp_path.rglob("*.jpg")):
            raise KeyboardInterrupt
        return make_scene(seed)

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "make_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, train=2, val=1)
    assert list(tmp_path.iterdir()) == []
    assert len(list(prepare(tmp_path, train=2, val=1).train.iterdir())) == 2


def test_the_faster_process_wins(monkeypatch, tmp_path):
    """A second process finishes the same set while the first one is still drawing."""

    def overtaken(seed):
        with monkeypatch.context() as patch:
            patch.setattr(scenes, "make_scene", make_scene)
            winner.append(prepare(tmp_path, train=1, val=1))
        return make_scene(seed)

    winner = []
    monkeypatch.setattr(scenes, "make_scene", overtaken)
    assert prepare(tmp_path, train=1, val=1) == winner[0]
    assert [path.name for path in tmp_path.iterdir()] == ["scenes-1-1-1-0"]


def test_a_failing_disk_is_reported(monkeypatch, tmp_path):
    def fail(source, target):
        raise OSError("no space")

    monkeypatch.setattr(scenes.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        prepare(tmp_path, train=1, val=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"SLOTCON_HUB_CACHE": "{}/own", "XDG_CACHE_HOME": "{}/xdg"}, "own"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/slotcon_hub"),
        ({"HOME": "{}"}, ".cache/slotcon_hub"),
    ],
)
def test_default_folder(variables, place, monkeypatch, tmp_path):
    for name in ("SLOTCON_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert prepare(train=1, val=1).train == tmp_path / place / "scenes-1-1-1-0" / "train"


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"val": -3}, {"seed": -1}])
def test_prepare_refuses_numbers_that_make_no_set(wrong, tmp_path):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        prepare(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_for_the_scenes_it_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be written to \S+ \(.+\): set SLOTCON_HUB_CACHE to a folder"):
        prepare(tmp_path / "file/cache", train=1, val=1)
    for name in ("SLOTCON_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ValueError, match="this user has no home folder: set SLOTCON_HUB_CACHE to one"):
        prepare(train=1, val=1)

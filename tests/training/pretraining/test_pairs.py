"""Samples, plan and loader: drawn from (seed, epoch, index) alone, whoever loads them, and despite bad files."""

import errno
import pickle

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from slotcon_hub.images import ImageFiles
from training import pretrain
from training.data import color
from training.data.plan import Steps
from training.data.views import TwoViews
from training.pretraining import pairs as data
from training.pretraining.pairs import (
    TooManyUnreadable,
    Unreadable,
    ViewPairs,
    collate,
    make_loader,
)

SIZE = 16
KEYS = ("views", "boxes", "flips", "color")


class Numbered:
    """So many images that cannot be read, from nowhere."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def name(self, index):
        return f"image <{index}>"

    def read(self, index):
        raise OSError(f"no {index}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 12 images of various sizes, of which number 5 is cut short."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(12):
        noise = rng.integers(256, size=(20 + i, 40 - i, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02}.jpg")
    bad = folder / "05.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    return folder


def pairs_of(folder, seed=0):
    return ViewPairs(ImageFiles(folder), TwoViews(SIZE), seed)


def sample(pairs, epoch, index):
    """A batch of one."""
    return collate([pairs[epoch, index]])


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in KEYS) and a["unreadable"] == b["unreadable"]


def test_a_sample_depends_on_seed_epoch_and_index_alone(folder):
    pairs, again = pairs_of(folder), pairs_of(folder)
    first = sample(pairs, 2, 3)
    np.random.seed(1)
    torch.manual_seed(1)
    assert same(sample(pairs, 2, 3), first)
    assert same(sample(again, 2, 3), first)
    assert same(sample(pickle.loads(pickle.dumps(pairs)), 2, 3), first)  # where workers are not forked
    others = ((pairs, 1, 3), (pairs, 3, 3), (pairs, 2, 4), (pairs_of(folder, seed=1), 2, 3))
    for other in (sample(*key) for key in others):
        assert not any(torch.equal(other[key], first[key]) for key in ("views", "boxes", "color"))


def test_another_image_comes_in_the_place_of_an_unreadable_one(folder):
    pairs = pairs_of(folder)
    first = sample(pairs, 0, 5)
    assert same(first, sample(pairs_of(folder), 0, 5))
    assert set(first["unreadable"]) == {5}
    assert first["views"].float().std() > 10
    assert not torch.equal(first["views"], sample(pairs, 1, 5)["views"])
    assert sample(pairs, 0, 4)["unreadable"] == {}


class Away(ImageFiles):
    """Files on a server that is away for the first so many attempts."""

    def __init__(self, folder, error, attempts):
        super().__init__(folder)
        self.error, self.attempts = error, attempts

    def read(self, index):
        self.attempts -= 1
        if self.attempts >= 0:
            raise self.error
        return super().read(index)


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "stale"), OSError(errno.EIO, "I/O"), TimeoutError("late")])
def test_a_server_that_is_away_for_a_moment_is_waited_for(folder, monkeypatch, error):
    monkeypatch.setattr(data, "PAUSES", (0, 0, 0))
    first = sample(pairs_of(folder), 0, 3)
    assert same(first, sample(ViewPairs(Away(folder, error, 3), TwoViews(SIZE), 0), 0, 3))
    assert sample(ViewPairs(Away(folder, error, 4), TwoViews(SIZE), 0), 0, 3)["unreadable"].keys() == {3}


@pytest.mark.parametrize(
    "error", [OSError("row 3 is empty"), OSError(errno.ENOENT, "no"), OSError(errno.EACCES, "no")]
)
def test_what_does_not_pass_is_not_waited_for(folder, monkeypatch, error):
    monkeypatch.setattr(data, "PAUSES", (1e9,))
    assert sample(ViewPairs(Away(folder, error, 1), TwoViews(SIZE), 0), 0, 3)["unreadable"].keys() == {3}


def test_substitutes_are_drawn_from_all_images(tmp_path):
    for value in range(8):
        Image.new("RGB", (8, 8), (value * 30 + 9,) * 3).save(tmp_path / f"{value}.png")
    (tmp_path / "3.png").write_bytes(b"")
    pairs = pairs_of(tmp_path)
    seen = {sample(pairs, epoch, 3)["views"][0, 0, 0, 0, 0].item() for epoch in range(80)}
    assert seen == {value * 30 + 9 for value in range(8) if value != 3}


def test_a_black_image_when_nothing_can_be_read():
    black = sample(ViewPairs(Numbered(7), TwoViews(SIZE), 0), 0, 2)
    assert next(iter(black["unreadable"])) == 2
    assert set(black["unreadable"]) == set(range(7))
    assert black["views"].shape == (2, 1, 3, SIZE, SIZE)
    assert not black["views"].any()


def test_a_black_image_when_headers_alone_can_be_read(tmp_path):
    for value in range(3):
        Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / f"{value}.png")
        (tmp_path / f"{value}.png").write_bytes((tmp_path / f"{value}.png").read_bytes()[:40])
    black = sample(pairs_of(tmp_path), 0, 2)
    assert set(black["unreadable"]) == {0, 1, 2}
    assert not black["views"].any()


def test_a_batch_is_its_samples(folder):
    pairs = pairs_of(folder)
    keys = [(epoch, index) for epoch in (0, 1) for index in range(12)]
    batch, alone = collate(pairs.__getitems__(keys)), [sample(pairs, *key) for key in keys]
    for name in KEYS:
        assert torch.equal(batch[name], torch.cat([one[name] for one in alone], dim=1))
    assert batch["unreadable"] == {index: why for one in alone for index, why in one["unreadable"].items()}


@pytest.mark.parametrize(("length", "batch_size"), [(8, 8), (37, 8), (40, 8)])
def test_an_epoch_visits_each_image_at_most_once(length, batch_size):
    per_epoch = length // batch_size
    plan = list(Steps(length, batch_size, range(3 * per_epoch), seed=0))
    orders = []
    for epoch in range(3):
        batches = plan[epoch * per_epoch :][:per_epoch]
        assert {e for batch in batches for e, _ in batch} == {epoch}
        assert {len(batch) for batch in batches} == {batch_size}
        orders.append([index for batch in batches for _, index in batch])
        assert len(set(orders[-1])) == len(orders[-1]) == per_epoch * batch_size
        assert set(orders[-1]) <= set(range(length))
        assert all(type(index) is int for index in orders[-1])
    assert len(set(map(tuple, orders))) == 3
    assert orders[0] != sorted(orders[0])


def test_what_is_left_over_changes_from_epoch_to_epoch():
    plan = list(Steps(10, 8, range(20), seed=0))
    assert len({frozenset(range(10)) - {index for _, index in batch} for batch in plan}) > 10


def test_orders_follow_the_seed():
    plan = list(Steps(40, 8, range(5), seed=3))
    assert list(Steps(40, 8, range(5), seed=3)) == plan
    assert list(Steps(40, 8, range(5), seed=4)) != plan


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_share_the_batches_of_one(processes, accumulation):
    length, batch_size, steps = 37, 16, range(1, 6)
    alone = list(Steps(length, batch_size, steps, seed=0))
    plans = [
        Steps(length, batch_size, steps, seed=0, rank=rank, processes=processes, accumulation=accumulation)
        for rank in range(processes)
    ]
    shares = [list(plan) for plan in plans]
    assert {len(plan) for plan in plans} == {len(share) for share in shares} == {len(steps) * accumulation}
    for step, batch in enumerate(alone):
        micro = [share[step * accumulation :][:accumulation] for share in shares]
        parts = [part for turn in zip(*micro, strict=True) for part in turn]
        assert {len(part) for part in parts} == {batch_size // processes // accumulation}
        assert [pair for part in parts for pair in part] == batch


@pytest.mark.parametrize("step", [0, 1, 4, 5, 11])
def test_resuming_goes_on_with_the_plan(step):
    options = {"seed": 1, "rank": 1, "processes": 2, "accumulation": 2}
    whole = list(Steps(20, 4, range(12), **options))
    assert list(Steps(20, 4, range(step, 12), **options)) == whole[step * 2 :]


def test_the_loader_delivers_what_was_planned(folder):
    steps = Steps(12, 4, range(6), seed=0)
    pairs = pairs_of(folder)
    loaded = [list(make_loader(pairs, steps, workers)) for workers in (0, 2)]
    planned = list(steps)
    assert len(loaded[0]) == len(loaded[1]) == len(planned) == 6
    for batch, other, keys in zip(*loaded, planned, strict=True):
        assert same(batch, other)
        assert same(batch, collate([pairs[key] for key in keys]))
        assert set(batch["unreadable"]) == {index for _, index in keys if index == 5}
        assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items() if key in KEYS} == {
            "views": (torch.uint8, (2, 4, 3, SIZE, SIZE)),
            "boxes": (torch.float32, (2, 4, 4)),
            "flips": (torch.bool, (2, 4)),
            "color": (torch.float32, (2, 4, len(color.draw(1, np.random.default_rng(0))))),
        }


def test_colours_are_the_same_wherever_they_are_augmented(folder):
    steps, pairs = Steps(12, 4, range(3), seed=0), pairs_of(folder)
    plain, augmented = (list(make_loader(pairs, steps, 1, augmented=where)) for where in (False, True))
    accelerator = Accelerator()
    for one, other in zip(plain, augmented, strict=True):
        assert "color" not in other
        for batch in (one, other):
            del batch["unreadable"]
        here, there = (pretrain.to_device(batch, accelerator, torch.channels_last) for batch in (one, other))
        for view, same_view in zip(here[0], there[0], strict=True):
            assert torch.equal(view, same_view)
            assert view.dtype == torch.float32
            assert view.std() > 0.3


def test_unreadable_images_are_named_once(capsys):
    unreadable = Unreadable(Numbered(1000), Accelerator(cpu=True), [5])
    unreadable.check()
    assert capsys.readouterr() == ("", "")
    unreadable.add(dict.fromkeys([7, 3, 5, 7], "gone"))
    unreadable.check()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"skipped, since it cannot be read: image <{i}> (gone)" for i in (3, 7)]
    unreadable.add(dict.fromkeys([3, 8], "gone"))
    unreadable.check()
    unreadable.check()
    assert capsys.readouterr().err == "skipped, since it cannot be read: image <8> (gone)\n"


@pytest.mark.parametrize("length", [200, 700, 2900])
def test_more_than_one_in_a_hundred_end_the_run(length, capsys):
    unreadable = Unreadable(Numbered(length), Accelerator(cpu=True), [])
    unreadable.add(dict.fromkeys(range(length // 100), "gone"))
    unreadable.check()
    unreadable.add({length - 1: "gone"})
    with pytest.raises(TooManyUnreadable) as raised:
        unreadable.check()
    first, *names = str(raised.value).splitlines()
    assert first == (
        f"{length // 100 + 1} of {length} images cannot be read, more than 1%: "
        "mend or remove them, then start again"
    )
    assert names == [f"  image <{i}>" for i in [*range(length // 100), length - 1]]
    assert capsys.readouterr().err.count("skipped") == length // 100 + 1


def test_one_unreadable_image_among_few_does_not_end_the_run(capsys):
    few = Unreadable(Numbered(4), Accelerator(cpu=True), [])
    few.add({2: "truncated"})
    few.check()
    assert capsys.readouterr().err == "skipped, since it cannot be read: image <2> (truncated)\n"
    for length, unreadable in ((4, [1, 2]), (1, [0])):
        with pytest.raises(TooManyUnreadable):
            Unreadable(Numbered(length), Accelerator(cpu=True), unreadable).check()

"""Streams of Parquet files: what is read, by whom, how often, and that samples are those of files on a disk."""

import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import encode
from PIL import Image

from training.data import streaming
from training.data.images import open_images
from training.data.plan import Steps
from training.data.streaming import ParquetStream, Unreachable, deal
from training.data.views import TwoViews
from training.pretraining.pairs import ViewPairs, collate, make_loader

datasets = pytest.importorskip("datasets")

SIZE = 16


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(streaming, "PAUSES", (0, 0))


def image(value):
    noise = np.random.default_rng(value).integers(256, size=(24, 32, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), "JPEG")


def write(file, values, group=5):
    """Write images in row groups; None for one that is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": None if value is None else image(value), "path": None} for value in values]
    images = pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": images, "label": pa.array(values, pa.int64())}), file, row_group_size=group)


@pytest.fixture
def shards(tmp_path):
    """Three files of 12, 7 and 21 images, in row groups of at most 5; another split beside them."""
    folder, start = tmp_path / "shards", 0
    for file, count in enumerate((12, 7, 21)):
        write(folder / f"train-{file}.parquet", range(start, start + count))
        start += count
    write(folder / "validation-0.parquet", range(900, 903))
    return folder


def stream(source, *args, **options):
    return open_images(str(source), *args, streaming=True, **options)


def test_a_stream_holds_what_its_files_hold(shards):
    images = stream(shards)
    assert isinstance(images, ParquetStream)
    assert len(images) == 40
    assert images.groups.tolist() == [5, 5, 2, 5, 2, 5, 5, 5, 5, 1]
    for index in np.random.default_rng(0).permutation(40).tolist() * 2:
        assert images.read(index) == image(index)
    assert re.fullmatch(r"row 12 \(.*/train-1\.parquet\)", images.name(12))
    assert re.fullmatch(r"row 39 \(.*/train-2\.parquet\)", images.name(39))
    assert stream(shards, "validation").read(2) == image(902)
    assert len(stream(shards / "train-1.parquet")) == 7
    assert len(stream(f"hf:{shards}")) == 40


def test_a_digest_tells_files_from_others_wherever_they_are(tmp_path):
    for place, values, group in (
        ("a", (1, 2, 3), 2),
        ("b", (1, 2, 3), 2),
        ("c", (1, 2, 3, 4), 2),
        ("d", (1, 2, 3), 3),
    ):
        (tmp_path / place).mkdir()
        write(tmp_path / place / "train.parquet", values, group)
    digests = [stream(tmp_path / place).digest() for place in "abcd"]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_images_may_be_plain_bytes(tmp_path):
    pq.write_table(pa.table({"image": [image(1), None]}), tmp_path / "a.parquet")
    images = stream(tmp_path / "a.parquet", column="image")
    assert images.read(0) == image(1)


def test_an_empty_row_is_an_unreadable_image(tmp_path):
    write(tmp_path / "a.parquet", [0, None, 2, 3])
    images = stream(tmp_path / "a.parquet")
    with pytest.raises(OSError, match="row 1 is empty"):
        images.read(1)
    sample = collate([ViewPairs(images, TwoViews(SIZE), seed=0)[0, 1]])
    assert set(sample["unreadable"]) == {1}
    assert sample["views"].float().std() > 10


def test_samples_are_those_of_the_same_files_on_a_disk(shards):
    keys = [(0, 7), (0, 39), (5, 7)]
    streamed, stored = (
        collate(ViewPairs(open_images(str(shards), streaming=flag), TwoViews(SIZE), seed=3).__getitems__(keys))
        for flag in (True, False)
    )
    assert streamed.pop("unreadable") == stored.pop("unreadable") == {}
    for name, values in stored.items():
        assert torch.equal(streamed[name], values)


def lanes_of(plan, rank, processes, accumulation, workers):
    """What each worker of a process is given, in order: DataLoader hands micro-batches to the workers in turn."""
    given = {}
    options = {"rank": rank, "processes": processes, "accumulation": accumulation, "workers": workers}
    for number, batch in enumerate(plan(**options)):
        given.setdefault(number % workers, []).extend(batch)
    return given


@pytest.mark.parametrize(
    ("processes", "accumulation", "workers"), [(1, 1, 1), (2, 1, 3), (2, 2, 2), (4, 1, 1), (1, 4, 3)]
)
def test_each_row_group_is_read_once_by_one_worker(monkeypatch, processes, accumulation, workers):
    monkeypatch.setattr(streaming, "WINDOW", 40)
    groups = np.random.default_rng(0).integers(5, 15, 100)
    length, batch_size = int(groups.sum()), 16
    steps = length // batch_size

    def plan(**options):
        return Steps(length, batch_size, range(3 * steps), seed=0, groups=groups, **options)

    group_of = np.repeat(np.arange(100), groups)
    for epoch in range(3):
        rows, readers, orders = [], Counter(), []
        for rank in range(processes):
            for given in lanes_of(plan, rank, processes, accumulation, workers).values():
                own = [row for e, row in given if e == epoch]
                rows += own
                readers.update(set(group_of[own].tolist()))
                orders.append(group_of[own])
        assert len(rows) == len(set(rows)) == steps * batch_size
        assert sum(readers.values()) <= 100 + processes * workers - 1  # where lanes meet, both read
        for order in orders:  # a group comes and goes within two windows and its own length
            for group in set(order.tolist()):
                places = np.flatnonzero(order == group)
                assert places[-1] - places[0] < 2 * 40 + 15
            assert (np.diff(order) != 0).mean() > 0.5  # groups are mixed


def test_epochs_and_seeds_have_their_own_orders():
    groups = np.full(20, 5)

    def epoch_of(seed, epoch):
        return [row for batch in Steps(100, 10, range(epoch * 10, epoch * 10 + 10), seed=seed, groups=groups)
                for _, row in batch]  # fmt: skip

    assert epoch_of(0, 0) == epoch_of(0, 0)
    assert len({tuple(epoch_of(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(epoch_of(1, 1)) == list(range(100))


@pytest.mark.parametrize("step", [1, 5, 7, 12])
def test_a_plan_that_goes_on_is_the_same_plan(step):
    options = {"seed": 1, "rank": 1, "processes": 2, "accumulation": 2, "workers": 3, "groups": np.full(7, 6)}
    whole = list(Steps(42, 8, range(15), **options))
    assert list(Steps(42, 8, range(step, 15), **options)) == whole[step * 2 :]


def test_dealing_is_uniform_over_places():
    first = Counter(int(deal(np.full(10, 2), np.zeros(20, int), np.random.default_rng(s))[0]) for s in range(2000))
    assert set(first) == set(range(20))
    assert max(first.values()) < 2 * min(first.values())


def test_only_what_is_about_to_be_used_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW", 10)
    write(tmp_path / "a.parquet", range(200))
    images = stream(tmp_path / "a.parquet")
    loads, load, most = Counter(), images._load, 0
    monkeypatch.setattr(images, "_load", lambda group: (loads.update([group]), load(group)))
    for batch in Steps(200, 8, range(25), seed=0, groups=images.groups):
        for _, index in batch:
            assert images.read(index) == image(index)
            most = max(most, len(images._rows))
    assert loads == {group: 1 for group in range(40)}
    assert most < 10 + 5 + 1
    for index in range(0, 200, 5):  # rows that nobody asks for again do not pile up
        images.read(index)
    assert len(images._rows) <= 2 * (10 + 5)


def test_workers_read_their_own(shards):
    images = stream(shards)
    pairs = ViewPairs(images, TwoViews(SIZE), seed=0)
    steps = Steps(40, 8, range(10), seed=0, groups=images.groups, workers=2)
    batches = list(make_loader(pairs, steps, workers=2))
    assert len(batches) == 10
    for batch, keys in zip(batches, steps, strict=True):
        assert torch.equal(batch["views"], collate([pairs[key] for key in keys])["views"])
        assert batch["unreadable"] == {}


class Ranges(BaseHTTPRequestHandler):
    """Serve the files of a folder in parts, and note what was asked for."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(send=False)

    def do_GET(self):
        self.answer(send=True)

    def answer(self, send):
        body = (self.server.folder / self.path.lstrip("/")).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(body))
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(min(stop, len(body)) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{min(stop, len(body)) - 1}/{len(body)}")
        self.end_headers()
        if send:  # whoever only asks whether there is a file hangs up on the whole of it
            self.server.parts += len(body[start:stop]) if asked else 0  # before the client can know
            self.wfile.write(body[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    server.folder, server.parts, server.handle_error = tmp_path / "served", 0, lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_row_group_travels_alone(server, tmp_path):
    write(server.folder / "a.parquet", range(100))
    images = stream(f"http://127.0.0.1:{server.server_port}/a.parquet")
    before = server.parts
    assert before <= 2**16  # the footer
    assert [images.read(index) for index in range(50, 55)] == [image(index) for index in range(50, 55)]
    image_batch = sum(len(image(index)) for index in range(50, 55))
    assert 0.9 * image_batch < server.parts - before < 1.1 * image_batch
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 2000]
    assert kept == []


def test_what_has_gone_stops_the_run(server):
    write(server.folder / "a.parquet", range(20))
    images = stream(f"http://127.0.0.1:{server.server_port}/a.parquet")
    images.read(0)
    (server.folder / "a.parquet").unlink()
    assert images.read(1) == image(1)  # of the same row group
    with pytest.raises(Unreachable, match=r"http://\S*a\.parquet could not be read: \S"):
        images.read(19)


def test_a_moment_without_network_is_waited_for(shards, monkeypatch):
    images = stream(shards)
    attempts, read = [], streaming._read_group

    def flaky(*args):
        attempts.append(args)
        if len(attempts) < 3:
            raise TimeoutError
        return read(*args)

    monkeypatch.setattr(streaming, "_read_group", flaky)
    assert images.read(0) == image(0)
    assert len(attempts) == 3


def test_what_cannot_be_streamed_is_one_sentence(shards, tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jpg").write_bytes(image(0))
    write(tmp_path / "none" / "a.parquet", [])
    pq.write_table(pa.table({"image": ["a.jpg"], "label": [1]}), tmp_path / "paths.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 but no more")
    for source, options, words in (
        (tmp_path / "files", {}, "holds no Parquet file to stream: leave out --streaming"),
        (f"hf:{tmp_path / 'files'}", {}, r"keeps its images in files like \S*a\.jpg: only Parquet files can be"),
        (shards, {"split": "test"}, "split 'test', could not be loaded: there are train, validation"),
        (shards, {"column": "photo"}, r"no column 'photo' in \S*: give --image-column one of image, label"),
        (shards, {"column": "label"}, "column 'label' of .* holds no encoded images: give --image-column one of"),
        (tmp_path / "paths.parquet", {}, "column 'image' of .* holds no encoded images"),
        (tmp_path / "none", {}, "the data set has no rows"),
        (tmp_path / "damaged.parquet", {}, r"damaged\.parquet could not be read"),
    ):
        with pytest.raises(ValueError, match=words) as raised:
            stream(source, **options)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(streaming, "HEAVIEST", 1000)
    with pytest.raises(ValueError, match=r"has row groups of \S+ GB, which every worker would keep"):
        stream(shards)

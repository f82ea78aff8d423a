"""Concept discovery against a slow, obvious version, and what it keeps."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from prototype_models import dividing_model, paint, painted

from slotcon_hub.concepts.discover import Concepts, Retrieved, crops, discover
from slotcon_hub.concepts.inference import CenterCrop, dense_maps
from slotcon_hub.images import ImageFiles, decode

PROTOTYPES = 40
CROP = CenterCrop(73, 64, "bicubic")


@pytest.fixture(scope="module")
def model():
    return dividing_model(PROTOTYPES)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return ImageFiles(paint(tmp_path_factory.mktemp("images"), 11))


def found(model, files, *, batch_size=4, workers=0, **options):
    return discover(model, crops(files, CROP, batch_size=batch_size, workers=workers), **options)


def slow(model, files, whole=False):
    """Of each prototype all segments, the most similar first: similarity, image, pixels, mask."""
    segments: dict[int, list] = {k: [] for k in range(model.num_classes)}
    for number in range(len(files)):
        z, scores = dense_maps(model, CROP(decode(files.read(number)))[None])
        if whole:
            feature = z[0].mean((1, 2))
            similar = F.cosine_similarity(feature[None], model.prototypes.weight)
            segments[int(similar.argmax())].append((float(similar.max()), number, 64 * 64, None))
            continue
        groups = F.interpolate(scores, (64, 64), mode="bilinear", align_corners=False)[0].argmax(0)
        full = F.interpolate(z, (64, 64), mode="bilinear", align_corners=False)[0]
        for k in set(groups.flatten().tolist()):
            mask = groups == k
            similar = F.cosine_similarity(full[:, mask].mean(1), model.prototypes.weight[k], dim=0)
            segments[k].append((float(similar), number, int(mask.sum()), mask.numpy()))
    return {k: sorted(found, key=lambda s: (-s[0], s[1])) for k, found in segments.items()}


@pytest.mark.parametrize("whole", [False, True])
@torch.inference_mode()
def test_the_nearest_segments_are_those_of_the_slow_version(model, files, whole):
    expected = slow(model, files, whole)
    concepts = found(model, files, top=3, whole=whole)
    assert concepts.images == len(files)
    assert concepts.segments == [len(expected[k]) for k in range(PROTOTYPES)]
    assert concepts.pixels == pytest.approx([sum(s[2] for s in expected[k]) for k in range(PROTOTYPES)], abs=9)
    assert sum(concepts.pixels) == len(files) * 64 * 64
    assert 3 < len(concepts.most_used()) < PROTOTYPES  # there is something to compare, and somebody unused
    for k in range(PROTOTYPES):
        nearest = concepts.nearest(k)
        assert [s.image for s in nearest] == [s[1] for s in expected[k][:3]]
        assert [s.pixels for s in nearest] == pytest.approx([s[2] for s in expected[k][:3]], abs=2)
        assert [s.similarity for s in nearest] == pytest.approx([s[0] for s in expected[k][:3]], abs=2e-5)
        for segment, (*_, mask) in zip(nearest, expected[k], strict=False):
            # A pixel may be between two prototypes but for rounding.
            assert np.sum(segment.pixel_mask(64) != (mask if mask is not None else True)) <= 2


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 20}, {"workers": 2}])
def test_batches_and_workers_make_no_difference(model, files, options):
    one, other = (found(model, files, top=3, **given) for given in ({}, options))
    assert one.segments == other.segments
    for k in range(PROTOTYPES):
        assert [s.image for s in one.nearest(k)] == [s.image for s in other.nearest(k)]
        similar = [s.similarity for s in other.nearest(k)]
        assert [s.similarity for s in one.nearest(k)] == pytest.approx(similar, abs=2e-5)


def test_bfloat16(model, files):
    rough, exact = (found(model, files, top=3, precision=p) for p in (torch.bfloat16, torch.float32))
    assert rough.most_used()[0] == exact.most_used()[0]
    best = [concepts.nearest(concepts.most_used()[0])[0].similarity for concepts in (rough, exact)]
    assert best[0] == pytest.approx(best[1], abs=0.03)
    assert best[0] != best[1]


def test_kept_are_the_first_of_a_full_sort():
    rng = random.Random(0)
    groups = torch.zeros(2, 4, dtype=torch.int16)
    offered = [(round(rng.random(), 2), image) for image in range(500)]  # with many ties
    concepts = Concepts(1, top=7)
    for similarity, image in offered:
        concepts.add(image, 0, similarity, 8, groups)
        assert len(concepts.nearest(0)) <= 7
    expected = sorted(offered, key=lambda o: (-o[0], o[1]))[:7]
    assert [(s.similarity, s.image) for s in concepts.nearest(0)] == expected
    assert (concepts.segments, concepts.pixels) == ([500], [4000])


def test_joined_are_as_if_found_by_one():
    rng = random.Random(0)
    groups = torch.zeros(2, 4, dtype=torch.int16)
    whole, *parts = (Concepts(2, top=5) for _ in range(4))
    for image in range(300):
        prototype, similarity = rng.randrange(2), round(rng.random(), 2)
        for concepts in (whole, rng.choice(parts[:2])):  # one has nothing
            concepts.add(image, prototype, similarity, 8, groups)
    for part in (parts[1], parts[2]):
        parts[0].merge(part)
    assert (parts[0].segments, parts[0].pixels) == (whole.segments, whole.pixels)
    assert [parts[0].nearest(k) for k in range(2)] == [whole.nearest(k) for k in range(2)]


def test_memory_is_that_of_the_kept_masks(model, files):
    concepts = found(model, files, top=2)
    kept = [s for k in range(PROTOTYPES) for s in concepts.nearest(k)]
    assert len(kept) <= PROTOTYPES * 2
    assert {len(s.mask) for s in kept} == {64 * 64 // 8}
    assert not any(s.mask for k in range(PROTOTYPES) for s in found(model, files, top=2, whole=True).nearest(k))


def test_equal_images_come_in_order(model, tmp_path):
    source = next(paint(tmp_path / "one", 2).glob("*.png"))
    for name in "edcba":
        (tmp_path / f"{name}.png").write_bytes(source.read_bytes())
    source.unlink()
    (tmp_path / "one" / "deeper" / "00.png").unlink()
    concepts = found(model, ImageFiles(tmp_path), top=3, batch_size=2)
    for k in concepts.most_used():
        assert concepts.segments[k] == 5
        assert [s.image for s in concepts.nearest(k)] == [0, 1, 2]


def test_use():
    concepts = Concepts(4, top=1)
    for prototype in (2, 1, 2, 3):
        concepts.add(0, prototype, 0.5, 1, None)
    assert concepts.most_used() == [2, 1, 3]
    assert concepts.unused() == [0]
    assert concepts.nearest(0) == []


def test_a_segment_knows_its_box():
    groups = torch.zeros(10, 10, dtype=torch.int16)
    groups[2:5, 3:9] = 1
    concepts = Concepts(2, top=1)
    concepts.add(5, 1, 0.1, 18, groups)
    (segment,) = concepts.nearest(1)
    assert segment.box(10) == (3, 2, 9, 5)
    assert segment.pixel_mask(10).sum() == 18
    assert Retrieved(0.1, -5, 100, b"").box(10) == (0, 0, 10, 10)


def test_images_are_turned_upright(model, tmp_path):
    upright, turned = painted(2, 60, 90), Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    Image.fromarray(upright).save(tmp_path / "a.png")
    Image.fromarray(np.rot90(upright)).save(tmp_path / "b.png", exif=turned)
    concepts = found(model, ImageFiles(tmp_path), top=2)
    for k in concepts.most_used():
        one, other = concepts.nearest(k)
        assert one[2:] == other[2:]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_told(model, tmp_path: Path, workers):
    paint(tmp_path, 3)
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "zz.png").symlink_to("nowhere.png")
    files = ImageFiles(tmp_path)
    concepts = found(model, files, top=1, batch_size=1, workers=workers)
    assert [Path(files.name(number)).name for number, _ in concepts.unreadable] == ["a.jpg", "zz.png"]
    assert "cannot identify" in concepts.unreadable[0][1]
    assert concepts.images == 3

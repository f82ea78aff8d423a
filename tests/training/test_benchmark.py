"""The benchmarks run, and compare what is comparable; how fast anything is, no test says."""

import numpy as np
import pytest
import torch
from PIL import Image

from training.benchmark import data
from training.benchmark.__main__ import main


def test_data_prints_every_contender(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8)
    for name in "abc":
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    for options, title in (([], "4 JPEGs made here, 64 px"), (["--data", str(tmp_path)], "3 JPEGs from ")):
        main(["data", "--side", "64", "--pictures", "4", "--rounds", "1", *options])
        out = capsys.readouterr().out
        assert title in out
        rows = [line.split("│")[2:4] for line in out.splitlines() if line.startswith("│")]
        rates, ratios = np.array([row for row in rows if row[0].strip()], dtype=float).T
        assert len(rates) == 5
        assert (rates > 0).all()
        assert ratios[-1] == 1


def test_both_pipelines_make_the_same_kind_of_views():
    contenders = data._contenders(data.InMemory(data.make_pictures(96, 32)))
    ours, theirs = contenders["the whole, with the colours on the CPU"](), contenders[data.ORDINARY]()
    assert ours.shape == theirs.shape == (64, 3, 224, 224)
    assert ours.dtype == theirs.dtype == torch.float32
    for statistic in (torch.mean, torch.std):
        for view in (slice(0, 32), slice(32, 64)):
            assert (statistic(ours[view]) - statistic(theirs[view])).abs() < 0.3


def test_made_pictures_are_always_the_same():
    assert data.make_pictures(64, 2) == data.make_pictures(64, 2)
    assert len(set(data.make_pictures(64, 2))) == 2


def test_a_folder_without_pictures_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .* holds no .*file"):
        main(["data", "--data", str(tmp_path)])

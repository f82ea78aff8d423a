"""The benchmarks run, and compare what is comparable; how fast anything is, no test says."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from training.pretraining.recipes import RECIPES
from training.tools.benchmark import data, step
from training.tools.benchmark.__main__ import main


def test_data_prints_every_contender(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8)
    for name in "abc":
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    for options, title in (([], "4 JPEGs made here, 64 px"), (["--data", str(tmp_path)], "3 JPEGs from ")):
        main(["data", "--side", "64", "--images", "4", "--rounds", "1", *options])
        out = capsys.readouterr().out
        assert title in out
        rows = [line.split("│")[2:4] for line in out.splitlines() if line.startswith("│")]
        rates, ratios = np.array([row for row in rows if row[0].strip()], dtype=float).T
        assert len(rates) == 5
        assert (rates > 0).all()
        assert ratios[-1] == 1


def test_both_pipelines_make_the_same_kind_of_views():
    contenders = data._candidates(data.InMemory(data.make_images(96, 32)))
    ours, theirs = contenders["a worker and colour augmentation on the CPU"](), contenders[data.ORDINARY]()
    assert ours.shape == theirs.shape == (64, 3, 224, 224)
    assert ours.dtype == theirs.dtype == torch.float32
    for statistic in (torch.mean, torch.std):
        for view in (slice(0, 32), slice(32, 64)):
            assert (statistic(ours[view]) - statistic(theirs[view])).abs() < 0.3


def test_made_images_are_always_the_same():
    assert data.make_images(64, 2) == data.make_images(64, 2)
    assert len(set(data.make_images(64, 2))) == 2


def test_a_folder_without_images_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .* holds no .*file"):
        main(["data", "--data", str(tmp_path)])


def test_listing_prints_how_fast_it_is(tmp_path, capsys):
    main(["listing", "--classes", "3", "--per-class", "4", "--rounds", "1", "--folder", str(tmp_path)])
    out = capsys.readouterr().out
    assert "12 files in 3 class folders" in out
    assert not any(tmp_path.iterdir())
    numbers = [line.split("│")[2:4] for line in out.splitlines() if line.startswith("│")]
    assert len(numbers) == 2
    assert all(float(rate.replace(",", "")) > 12 for _, rate in numbers)
    with pytest.raises(SystemExit, match="error: list 1 class or more"):
        main(["listing", "--classes", "0"])


STEP = ["step", "--recipe", "imagenette_20ep", "--num-prototypes", "5", "--steps", "1"]


def rows(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


def gflop(out: str) -> dict[str, float]:
    return {name: float(gflop) for name, *_, gflop, _, _ in (row for row in rows(out) if len(row) == 6) if name}


@pytest.fixture(autouse=True)
def own_state(monkeypatch):
    """Accelerate's state and the CPU threads are of this test alone."""
    threads = torch.get_num_threads()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setenv("COLUMNS", "200")
    yield
    torch.set_num_threads(threads)


def test_step_prints_every_part(capsys):
    main([*STEP, "--batch-sizes", "8"])
    out = capsys.readouterr().out
    assert "slotcon_nano, 96 px, K = 5, 8 images, precision no" in out
    assert "RTX" not in out  # another network
    plain = gflop(out)
    networks = [plain.pop(f"{name}, forward") for name in ("student", "teacher")]
    assert networks[0] == networks[1] > 1
    backward, whole = plain.pop("backward"), plain.pop("whole step, without stops")
    assert backward / networks[0] == pytest.approx(2, rel=0.1)
    assert whole == pytest.approx(sum(networks) + backward + sum(plain.values()), abs=0.5)
    assert plain["EMA update of the teacher"] == plain["optimiser"] == 0

    main([*STEP, "--batch-sizes", "8", "--grad-checkpointing"])
    out = capsys.readouterr().out
    assert "gradient checkpointing" in out
    assert backward < gflop(out)["backward"] <= backward + networks[0]


def test_step_goes_through_the_settings_beside_what_was_reported(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # lest the numbers of a slow step are broken over lines
    measure = step._measure

    def with_little_memory(recipe, processes, batch, *args):
        if batch > 2 or recipe.slotcon.num_prototypes > 5:
            raise torch.OutOfMemoryError
        return measure(recipe, processes, batch, *args)

    monkeypatch.setattr(step, "_measure", with_little_memory)
    monkeypatch.setitem(RECIPES, "r50", ("", replace(RECIPES["demo"][1], backbone="slotcon_r50", view_size=32)))
    options = ["--batch-sizes", "2", "4", "--num-prototypes", "5", "200", "--gpus", "16"]
    main(["step", "--recipe", "r50", "--steps", "1", *options])
    out = capsys.readouterr().out
    for batch, prototypes in ((4, 5), (2, 200), (4, 200)):
        assert f"{batch} images with K = {prototypes} do not fit" in out
    speed = [row for row in rows(out) if len(row) == 8]
    assert [row[1:3] for row in speed] == [["5", "2"], ["", "1024"], ["", "1024"], ["", "256"]]
    images, seconds = (float(speed[0][i].replace(",", "")) for i in (4, 5))
    assert images * seconds == pytest.approx(118_287, rel=0.01)
    assert speed[1][4:] == ["827.2", "143", "", "16.0"]
    assert 0.1 < float(speed[0][6]) < 10
    (sent,) = (row for row in rows(out) if row[:2] == ["5", "32"])
    total, keys, slots, parts = map(float, sent[2:])
    assert total > 90 > slots >= keys  # the gradients above all
    assert parts >= 1
    assert "what each of 16 GPUs would send" in out


@pytest.mark.parametrize("options", [["--recipe", "unknown"], ["--steps", "0"], ["--batch-sizes", "1"]])
def test_what_cannot_be_measured_is_one_sentence(options):
    with pytest.raises(SystemExit, match=r"^error: [^\n]*(choose one of|steps must be at least 1)"):
        main(["step", *options])


def test_busy_prints_both_kinds_of_waiting(capsys):
    main(["busy", "--rounds", "1", "--steps", "1", "--others", "1"])
    out = capsys.readouterr().out
    rows = [line.split("│")[2:6] for line in out.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == ["briefly", "sleep", "spin"] * 2
    for _, alone, busy, times in rows:
        assert float(times) == pytest.approx(float(busy) / float(alone), abs=0.06, rel=0.06)
    assert out.count("alone, spinning briefly costs") == 2
    with pytest.raises(SystemExit, match=r"^error: rounds, steps and others must be at least 1"):
        main(["busy", "--rounds", "0"])


def test_segmentation_stands_beside_deeplab(capsys):
    """Bytes are the same on any machine: at most 0.8 of DeepLabV3's at either stride."""
    main(["segmentation", "--crop", "129", "--rounds", "1", "--image", "40", "60"])
    found = rows(capsys.readouterr().out)
    bytes_of = {row[0]: float(row[4]) for row in found if len(row) == 5}
    assert bytes_of.pop("ours, output stride 16") == 1
    assert len(bytes_of) == 2
    assert max(bytes_of.values()) <= 0.8
    windows = {row[0]: float(row[2]) for row in found if len(row) == 3}
    assert windows.keys() == {"a test", "its forwards alone"}
    with pytest.raises(SystemExit, match="error: measure 1 round or more"):
        main(["segmentation", "--batch-size", "1"])


def test_detection_stands_beside_torchvision(capsys):
    main(["detection", "--image", "64", "64", "--batch-size", "1", "--rounds", "1"])
    words = capsys.readouterr().out
    assert "1 images of 64 x 64 px, 1 rounds" in words
    assert "maskrcnn_resnet50_fpn_v2" in words
    with pytest.raises(SystemExit, match="error: measure 1 round or more, of 1 image or more"):
        main(["detection", "--image", "32", "64"])


def test_the_page_stands_beside_the_command(capsys):
    pytest.importorskip("gradio")
    main(["explore", "--side", "96", "--size", "64", "--rounds", "1"])
    out = capsys.readouterr().out
    assert [name in out for name in ("the page, from an image", "slotcon-hub segment", "a click")] == [True] * 3
    with pytest.raises(SystemExit, match=r"^error: size, side and rounds must be at least 1"):
        main(["explore", "--rounds", "0"])


def test_evaluation_prints_the_memory_at_the_size_of_imagenet(monkeypatch, capsys):
    from training.tools.benchmark import evaluation

    commands = []

    def peak(command: list[str]) -> int:
        commands.append(command)
        return 10**9 + 1_000_000 * (len(commands) % 3 == 0)  # of three runs, only the last needs more

    monkeypatch.setattr(evaluation, "_peak", peak)
    main(["evaluation", "--images", "300", "--side", "32", "--model", "slotcon_nano"])
    found = {name: numbers for name, *numbers in rows(capsys.readouterr().out) if name}
    slope, images = 1_000_000 / 600, sum(evaluation.IMAGENET)
    for name, counted in (("knn", images), ("linear", images), ("concepts", evaluation.IMAGENET[0])):
        whole = f"{1 + slope * counted / 1e9:.2f}"
        assert found[name] == ["1.00", "1.00", "1.00", f"{slope:,.0f}", whole]
    assert [len(commands), len({str(command) for command in commands})] == [9, 9]
    with pytest.raises(SystemExit, match="error: measure more than 256 images"):
        main(["evaluation", "--images", "256"])


def test_the_peak_is_that_of_the_process():
    from training.tools.benchmark import evaluation

    empty, full = (
        evaluation._peak([sys.executable, "-c", f"x = b'1' * {size}; del x"]) for size in (1, 300_000_000)
    )
    assert 290e6 < full - empty < 310e6
    with pytest.raises(ValueError, match="failed: ValueError: no"):
        evaluation._peak([sys.executable, "-c", "raise ValueError('no')"])

"""The training script on made-up scenes: it learns, resumes exactly, in one process and in two."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from launched import launched
from PIL import Image
from runs import assert_equal, lines, weights
from safetensors.torch import load_file

from slotcon_hub.models.saving import save_model
from training.engine.step import Step
from training.transfer import segmentation
from training.transfer.semantic.crops import Crops
from training.transfer.semantic.datasets import open_data
from training.transfer.semantic.evaluation import Predictor, count
from training.transfer.semantic.recipes import ADE20K, CITYSCAPES, RECIPES, VOC, lr_at
from training.transfer.semantic.report import measure
from training.transfer.semantic.result import load
from training.transfer.semantic.transforms import Augmentation

ROOT = Path(__file__).parents[3]
COLORS = np.array([[200, 60, 50], [40, 160, 70], [50, 70, 210]])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Images of two of three colours, left and right of a line, with masks; some pixels have no label."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("scenes")
    for split, number in (("train", 12), ("val", 5)):
        for part in (root / split, root / "masks" / split):
            part.mkdir(parents=True)
        for i in range(number):
            height, width = 40 + 4 * (i % 3), 56
            left, right = rng.permutation(3)[:2]
            truth = np.where(np.arange(width) < rng.integers(16, 40), left, right).astype(np.uint8)
            truth = truth[None].repeat(height, 0)
            image = COLORS[truth] + rng.normal(size=(height, width, 3)) * 15
            truth[:2] = 255
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / f"{i}.png")
            Image.fromarray(truth).save(root / "masks" / split / f"{i}.png")
    (root / "masks" / "classes.txt").write_text("red\ngreen\nblue\n")
    return root


def options(scenes, *more):
    words = ["--data", scenes, "--masks", scenes / "masks", "--backbone", "slotcon_nano", "--batch-size", 4]
    words += ["--scale", 96, 48, "--crop", 48, "--workers", 0, "--threads", 1, "--log-every", 1, "--trackers"]
    return [str(word) for word in (*words, *more)]


@pytest.fixture
def train(tmp_path, monkeypatch, scenes):
    """Run the script in this process; Accelerate's state is made anew each time."""

    def call(recipe, *more, output="run"):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        small = ["--test-scale", 96, 48] if recipe == "ade20k" else []
        segmentation.main([recipe, *options(scenes, *small, *more, "--output", tmp_path / output)])
        return tmp_path / output

    return call


def test_a_short_training_beats_its_start(train, capsys):
    """An untrained network, measured after one step at a rate that moves nothing, and a trained one."""
    start = train("voc", "--steps", 1, "--lr", 1e-9, "--scratch", "--trackers", "tensorboard", output="start")
    folder = train("voc", "--steps", 30, "--lr", 0.03, "--test-every", 15)
    before, after = (json.loads((one / "results.json").read_text()) for one in (start, folder))
    assert before["miou"] < 0.5
    assert list(start.rglob("events.out.tfevents.*"))
    assert after["miou"] > before["miou"] + 0.3
    assert [one["name"] for one in after["per_class"]] == ["red", "green", "blue"]
    out = capsys.readouterr().out
    assert f"{100 * after['miou']:.2f}" in out
    assert 'predictor = load("' in out
    assert (folder / "grid.png").stat().st_size > 1000
    line = next(line for line in lines(folder) if line["step"] == 15)
    assert 0 < line["miou"] <= 1
    assert lines(folder)[-1]["loss"] < lines(folder)[0]["loss"]
    rates = [line["lr"] for line in lines(folder)]
    assert rates[20] == pytest.approx(0.03)
    assert rates[21] == pytest.approx(0.003)
    assert rates[27] == pytest.approx(0.0003)

    predictor = load(folder / "export")
    assert_equal(weights(folder), load_file(folder / "export" / "model.safetensors"))
    assert predictor(torch.zeros(3, 33, 45, dtype=torch.uint8)).shape == (33, 45)


def test_a_network_needs_no_folder_of_its_backbone(train, tmp_path):
    nano = timm.create_model("slotcon_nano", num_classes=0)
    save_model(nano, tmp_path / "model")
    folder = train("voc", "--steps", 1, "--backbone", tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert_equal(load(folder / "export").net.state_dict(), load_file(folder / "export/model.safetensors"))


def test_a_network_read_back_has_the_numbers_of_the_run(train, scenes):
    from accelerate import Accelerator

    folder = train("ade20k", "--steps", 2)
    data = open_data("ade20k", scenes, scenes / "masks")
    confusion, _ = count(load(folder / "export"), data.val, Accelerator(cpu=True), workers=0)
    results = json.loads((folder / "results.json").read_text())
    assert results["confusion"] == confusion.tolist()
    assert results["miou"] == measure(confusion, data.classes)["miou"]


def spoil(scenes, copy, *names):
    """A copy of the scenes in which some files are cut short behind their header, and the options for it."""
    shutil.copytree(scenes, copy)
    for name in names:
        (copy / name).write_bytes((copy / name).read_bytes()[:200])
    return ["--data", copy, "--masks", copy / "masks"]


@pytest.mark.parametrize(
    ("recipe", "precision", "spoiled"), [("ade20k", "no", []), ("voc", "bf16", []), ("voc", "no", ["train/3.png"])]
)
def test_a_run_resumes_exactly(recipe, precision, spoiled, train, monkeypatch, scenes, tmp_path):
    """One that was killed behind its first checkpoint; what dropout and the augmentation draw is the same.

    So is what takes the place of an unreadable image.
    """
    more = ["--steps", 5, "--save-every", 2, "--test-every", 2, "--mixed-precision", precision]
    more += spoil(scenes, tmp_path / "spoiled", *spoiled)
    whole = train(recipe, *more, output="whole")

    def kill(step, lr):
        if step.number == 4:
            raise KeyboardInterrupt
        set_lr(step, lr)

    set_lr = Step.set_lr
    with monkeypatch.context() as patch:
        patch.setattr(Step, "set_lr", kill)
        with pytest.raises(SystemExit, match="interrupted"):
            train(recipe, *more, output="killed")
    folder = train(recipe, *more, "--resume", output="killed")
    assert_equal(weights(folder), weights(whole))
    results = [json.loads((one / "results.json").read_text()) for one in (folder, whole)]
    assert results[0] == results[1]
    drop = {"images_per_second", "data_wait", "memory_gb"}
    kept = [[{k: v for k, v in line.items() if k not in drop} for line in lines(one)] for one in (folder, whole)]
    assert kept[0] == kept[1]


def test_bf16_trains_in_another_precision(train):
    losses = [
        lines(train("voc", "--steps", 2, "--mixed-precision", precision, output=precision))[0]["loss"]
        for precision in ("no", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_the_average_is_an_option(train):
    losses = [
        lines(train("voc", "--steps", 1, "--average", average, output=average))[0]["loss"]
        for average in ("all", "labelled")
    ]
    assert losses[0] < losses[1]


def test_two_processes_train_and_test_as_one(train, scenes, tmp_path):
    """Losses are those of one process but for the rounding, since BatchNorm sees both; tests count the same."""
    more = ["--steps", 3, "--batch-size", 4]
    one = train("voc", *more)
    tested = json.loads((one / "results.json").read_text())
    script = [ROOT / "training/transfer/segmentation.py", "voc", *options(scenes), *more]
    both = tmp_path / "both"
    assert launched(tmp_path / "two", [*script, "--output", both], processes=2).count("mIoU") == 1
    copy = shutil.copytree(one, tmp_path / "copy")  # of which this process has no lock
    (copy / "results.json").unlink()
    launched(tmp_path / "again", [*script, "--output", copy, "--resume"], processes=2)  # which only tests
    assert json.loads((both / "run.json").read_text())["processes"] == 2
    losses = [[line["loss"] for line in lines(folder)] for folder in (one, both)]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert json.loads((copy / "results.json").read_text()) == tested
    results = json.loads((both / "results.json").read_text())
    assert np.abs(np.array(results["confusion"]) - tested["confusion"]).sum() < 0.02 * np.sum(tested["confusion"])


@pytest.mark.parametrize(("window", "kept"), [([], False), (["--window", 48], True)])
def test_cudnn_measures_no_algorithms_for_test_images_of_any_size(window, kept, train, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as on a GPU
    predict = Predictor.__call__
    watched = lambda self, image: seen.append(torch.backends.cudnn.benchmark) or predict(self, image)  # noqa: E731
    monkeypatch.setattr(Predictor, "__call__", watched)
    train("voc", "--steps", 1, *window)
    assert seen == [kept] * 5
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_is_trained_on_in_the_place_of_an_unreadable_one(workers, train, scenes, tmp_path, capfd):
    """It is named before training if its header or its mask shows it, and when it is met."""
    data = spoil(scenes, tmp_path / "spoiled")
    file = tmp_path / "spoiled/masks/train/3.png"
    file.write_bytes(b"nothing")
    folder = train("voc", "--steps", 6, "--workers", workers, *data)
    assert len(lines(folder)) == 6
    said = [line for line in capfd.readouterr().err.splitlines() if str(file) in line]
    assert said[0].startswith(f"warning: {file} cannot be read as a mask: ")
    assert said[0].endswith("; training takes another image in its place")
    assert [f"skipped: {file} cannot be read as a mask: " in line for line in said[1:]] == [True]  # behind the bar


def test_a_substitute_is_drawn_from_the_sample_s_own_random_state(scenes, tmp_path):
    """Others than the unreadable image are what they would be without it."""
    copy = tmp_path / "spoiled"
    spoil(scenes, copy, "train/3.png")
    augmentation = Augmentation(48, (96, 48))
    whole, spoiled = (
        Crops(open_data("voc", root, root / "masks").train, augmentation, seed=1) for root in (scenes, copy)
    )
    (broken,) = (n for n, (image, _) in enumerate(spoiled.images.files) if image.name == "3.png")
    for epoch in range(3):
        for index in range(12):
            same = all(torch.equal(*pair) for pair in zip(whole[epoch, index], spoiled[epoch, index], strict=True))
            assert same == (index != broken)
    again = Crops(spoiled.images, augmentation, seed=1)
    crops = [again[epoch, broken].image for epoch in (2, 0, 1)]
    assert all(
        torch.equal(crop, spoiled[epoch, broken].image) for crop, epoch in zip(crops, (2, 0, 1), strict=True)
    )
    assert not torch.equal(crops[0], crops[1])


@pytest.mark.parametrize("name", ["val/2.png", "masks/val/2.png"])
def test_no_unreadable_test_image_is_left_out_of_the_numbers(name, train, scenes, tmp_path):
    """Before training, or if only its pixels are damaged, after it: once it is repaired, the run is only tested."""
    copy = tmp_path / "spoiled"
    data = ["--steps", 1, *spoil(scenes, copy, name)]
    if name.startswith("masks"):
        (copy / name).write_bytes(b"nothing")
        with pytest.raises(SystemExit, match=rf"error: .*{name} cannot be read .*: repair it, since no test image"):
            train("voc", *data)
        assert not (tmp_path / "run").exists()
        return
    with pytest.raises(SystemExit, match=rf"error: .*{name} cannot be read: .*; then test .* by --resume") as stop:
        train("voc", *data)
    assert "\n" not in str(stop.value)
    (copy / name).write_bytes((scenes / name).read_bytes())
    assert (train("voc", *data, "--resume") / "results.json").is_file()


def test_what_cannot_be_read_ends_in_a_sentence(train, scenes, tmp_path):
    broken = spoil(scenes, tmp_path / "broken", *(f"train/{i}.png" for i in range(12)))
    with pytest.raises(SystemExit, match=r"error: .*broken/train/\d+.png cannot be read") as stop:
        train("voc", "--steps", 2, *broken)
    assert "\n" not in str(stop.value)
    with pytest.raises(SystemExit, match=r"error: .*broken/train/\d+.png cannot be read") as stop:
        train("voc", "--steps", 2, *broken, "--workers", 1, output="with-a-worker")
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--batch-size", 13], "12 training images do not fill a batch: use --batch-size 12 or less"),
        (["--backbone", "swin_tiny_patch4_window7_224", "--scratch"], "stride 32, not 16"),
        (["--backbone", "slotcon_r34"], "No pretrained weights exist for slotcon_r34"),
        (["--backbone", "test_vit", "--scratch", "--crop", 100], "test_vit does not accept crops of 100 pixels"),
        (
            ["--backbone", "test_vit", "--scratch", "--crop", 160],
            "does not accept test images of any number of pixels",
        ),
        (
            ["--backbone", "test_vit", "--scratch", "--crop", 160, "--window", 90],
            "does not accept windows of 90 pixels",
        ),
        (["--data", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_mistakes_end_in_one_sentence(more, sentence, train, tmp_path):
    with pytest.raises(SystemExit, match=sentence) as stop:
        train("voc", *more)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "run").exists()


def test_a_mask_that_cannot_be_tested_ends_in_a_sentence(train, scenes, tmp_path, monkeypatch):
    """Before training, or where it was not checked, after it: once the mask is mended, the run is only tested."""
    shutil.copytree(scenes, tmp_path / "broken")
    mask = tmp_path / "broken" / "masks" / "val" / "3.png"
    whole = mask.read_bytes()
    Image.fromarray(np.full((40, 56), 7, np.uint8)).save(mask)
    broken = ["--steps", 1, "--data", tmp_path / "broken", "--masks", tmp_path / "broken" / "masks"]
    with pytest.raises(SystemExit, match=r"error: .*masks/val/3.png has the unknown label 7") as stop:
        train("voc", *broken)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("training.transfer.semantic.prepare.CHECKED", 1)
    with pytest.raises(SystemExit, match=r"error: .*masks/val/3.png has the unknown label 7.*--resume") as stop:
        train("voc", *broken)
    assert "\n" not in str(stop.value)
    mask.write_bytes(whole)
    folder = train("voc", *broken, "--resume")
    assert (folder / "results.json").is_file()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"window": 32, "window_stride": 40}, "skips pixels"),
        ({"window_stride": 40}, "skips pixels"),
        ({"save_every": 4, "keep_every": 6}, "not a multiple of save_every"),
        ({"max_share": 0.0}, "max_share=0.0 must be positive"),
        ({"ratios": (2.0, 1.0)}, "both above 0"),
        ({"ratios": (0.5, float("nan"))}, "must be a finite number"),
        ({"scale": (512.5, 4)}, "must be a whole number"),
        ({"min_lr": -1.0}, "must not be negative"),
        ({"test_scale": (0, 4)}, "at least 1 pixel"),
    ],
)
def test_impossible_values_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        replace(VOC, **values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "a recipe is missing: name one of voc, cityscapes, ade20k first"),
        (["--steps", "9"], "a recipe is missing: name one of voc, cityscapes, ade20k first"),
        (["coco"], "there is no recipe 'coco': choose one of voc, cityscapes, ade20k"),
        (["voc"], "voc needs images: add --data DIR"),
    ],
)
def test_a_recipe_and_its_data_must_be_named(argv, sentence):
    with pytest.raises(SystemExit, match=sentence):
        segmentation.main(argv)


def test_another_training_set_is_refused_when_a_run_is_resumed(train, scenes, tmp_path):
    train("voc", "--steps", 2, "--save-every", 1)
    shutil.copytree(scenes, tmp_path / "other")
    for part in ("train", "masks/train"):
        (tmp_path / "other" / part / "0.png").rename(tmp_path / "other" / part / "new.png")
    other = ["--data", tmp_path / "other", "--masks", tmp_path / "other" / "masks"]
    with pytest.raises(SystemExit, match="digest"):
        train("voc", "--steps", 2, "--save-every", 1, "--resume", *other)


def test_recipes_are_those_of_the_paper():
    def rates(recipe, *steps):
        return [lr_at(step, recipe) for step in steps]

    assert (VOC.crop, VOC.scale, VOC.batch_size, VOC.weight_decay) == (513, (2049, 513), 16, 1e-4)
    assert rates(VOC, 0, 20_999, 21_000, 26_999, 27_000) == pytest.approx([3e-3, 3e-3, 3e-4, 3e-4, 3e-5])
    assert (CITYSCAPES.crop, CITYSCAPES.scale) == (769, (2049, 1025))
    assert (CITYSCAPES.window, CITYSCAPES.window_stride, CITYSCAPES.test_scale) == (769, 513, None)
    assert rates(CITYSCAPES, 62_999, 63_000, 80_999, 81_000) == pytest.approx([1e-2, 1e-3, 1e-3, 1e-4])
    assert (ADE20K.crop, ADE20K.scale, ADE20K.max_share, ADE20K.photometric) == (512, (2048, 512), 0.75, True)
    assert (ADE20K.weight_decay, ADE20K.align_corners, ADE20K.output_stride) == (5e-4, False, 8)
    assert (ADE20K.test_scale, ADE20K.window) == ((2048, 512), None)
    half = (0.01 - 1e-4) * 0.5**0.9 + 1e-4
    assert rates(ADE20K, 0, 40_000, 80_000) == pytest.approx([0.01, half, 1e-4])
    assert {recipe.mixed_precision for _, recipe in RECIPES.values()} == {"no"}
    assert all(recipe.ratios == (0.5, 2.0) for _, recipe in RECIPES.values())


@pytest.mark.parametrize("argv", [["--help"], ["voc", "--help"], ["ade20k", "--help"]])
def test_help_says_what_can_be_changed(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        segmentation.main(argv)
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "71.6" in out if argv[0] != "ade20k" else "39.0" in out
    if len(argv) > 1:
        assert "--average" in out
        assert "--head" not in out

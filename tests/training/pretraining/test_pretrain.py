"""The whole chain in miniature: real images on the disk, real runs, what they leave behind."""

import functools
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import timm
import torch
from accelerate import Accelerator
from checkpoint_files import official
from PIL import Image
from runs import TINY, assert_equal, lines, weights, write_parquet
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.layers import DropPath

from slotcon_hub import SlotCon, cpu
from slotcon_hub.convert import from_official
from slotcon_hub.files import sha256
from slotcon_hub.functional import teacher_momentum
from slotcon_hub.weights.reader import read_checkpoint
from training import pretrain
from training.data import scenes, streaming
from training.engine.memory_format import memory_format
from training.engine.metrics import Diverged
from training.engine.optim import lr_at
from training.pretraining import model as build
from training.pretraining.preview import Showcase
from training.tools.reliability.kills import differences
from training.tools.reliability.launch import Launch

ROOT = Path(__file__).parents[3]


def test_a_run_and_what_it_leaves(run, images, capsys):
    folder = run("coco_800ep", "--data", images, *TINY.split(), figures=True)
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["recipe"], facts["images"], facts["steps"], facts["processes"]) == ("coco_800ep", 10, 4, 1)
    assert facts["settings"]["slotcon"]["num_prototypes"] == 5
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert facts["revision"] is None or len(facts["revision"]) >= 40
    found = lines(folder)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in found)
    assert all(line["loss"] == pytest.approx((line["group_loss"] + line["slot_loss"]) / 2) for line in found)
    assert [round(line["lr"] * 1000, 3) for line in found[:3]] == [0.156, 7.891, 15.625]
    assert found[0]["teacher_momentum"] == pytest.approx(0.99)
    for name in ("curves.png", "groups.png"):
        with Image.open(folder / name) as image:
            assert np.asarray(image.convert("RGB")).std() > 10
    assert any((folder / "slotcon").glob("events.out.tfevents.*"))
    assert "--num-prototypes" in capsys.readouterr().out
    teacher = {k: v for k, v in weights(folder).items() if k.startswith("teacher.")}
    exported = load_file(folder / "export/prototypes/model.safetensors")
    assert_equal(exported, {k.removeprefix("teacher."): v for k, v in teacher.items()})
    model = timm.create_model(f"local-dir:{folder}/export/backbone", pretrained=True)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 256)


@pytest.fixture
def drop_paths(monkeypatch):
    """Give the backbone what draws random numbers in every step."""
    create = build.create_backbone

    def with_drop_paths(*args, **options):
        backbone = create(*args, **options)
        for block in backbone.layer3:
            block.drop_path = DropPath(0.5)
        return backbone

    monkeypatch.setattr(build, "create_backbone", with_drop_paths)


def test_resumed_is_uninterrupted(run, images, tmp_path, monkeypatch, capsys, drop_paths):
    monkeypatch.setattr("training.data.images.TOLERATED", 1.0)
    for name in ("0.jpg", "2.jpg", "4.jpg"):
        (images / name).write_bytes(b"")
    whole = run("demo", "--data", images, *TINY.split(), "--output", tmp_path / "whole")
    part = run("demo", "--data", images, *TINY.split(), "--output", tmp_path / "part")
    newest = part / "checkpoints/step-00000004"  # as if the disk had been full after the first epoch
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:999])
    with (part / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    capsys.readouterr()
    run("demo", "--data", images, *TINY.split(), "--output", part, "--resume")
    said = capsys.readouterr().err
    assert f"warning: the checkpoint {newest} is damaged: optimizer.pt does not match SHA256SUMS\n" in said
    assert f"{part} resumes from step-00000002\n" in said
    assert differences(whole, part) == []
    assert said.count("skipped") < lines(part)[2]["unreadable"] == lines(whole)[2]["unreadable"]  # named once
    events = EventAccumulator(str(part / "slotcon")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_a_resumed_stream_is_uninterrupted(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    options = ["--data", write_parquet(tmp_path, images), "--streaming", *TINY.split(), "--workers", "1"]
    whole = run("demo", *options, "--output", tmp_path / "whole")
    part = run("demo", *options, "--output", tmp_path / "part")
    shutil.rmtree(part / "checkpoints/step-00000004")
    run("demo", *options, "--output", part, "--resume")
    assert differences(whole, part) == []


def test_resuming_a_finished_run_changes_nothing(run, images, tmp_path):
    argv = ["demo", "--data", images, *TINY.split()]
    folder = run(*argv)
    copy = shutil.copytree(folder, tmp_path / "copy")
    run(*argv, "--resume")
    assert differences(copy, folder) == []


def test_resuming_what_has_no_checkpoint_starts_and_says_so(run, images, tmp_path, capsys, monkeypatch):
    argv = ["demo", "--data", images, *TINY.split(), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "fit", interrupt)
        with pytest.raises(SystemExit, match="error: interrupted: --resume continues from the last checkpoint"):
            run(*argv)  # no folder yet
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "loss": 7.0}\n')
    folder = run(*argv)  # no checkpoint yet
    assert capsys.readouterr().err.count("resumes from the start, since it has no checkpoint yet\n") == 2
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4]
    assert lines(folder)[0]["loss"] != 7


def test_a_kill_between_lock_and_description_leaves_what_can_be_resumed(run, images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock").touch()
    (tmp_path / "run/.run.json-abc").mkdir()
    folder = run("demo", "--data", images, *TINY.split(), "--resume")
    assert len(lines(folder)) == 4
    assert not list(folder.glob(".*"))


def test_every_start_of_a_run_is_kept(run, images, monkeypatch):
    argv = ["demo", "--data", images, *TINY.split()]
    folder = run(*argv)
    first = json.loads((folder / "run.json").read_text())
    assert "resumed" not in first
    monkeypatch.setattr("training.engine.folder._revision", lambda: "later")
    shutil.rmtree(folder / "checkpoints/step-00000004")
    run(*argv, "--log-every", "2", "--resume")
    run(*argv, "--resume")
    facts = json.loads((folder / "run.json").read_text())
    resumed = facts.pop("resumed")
    assert facts == first
    assert [(start["step"], start["revision"]) for start in resumed] == [(2, "later"), (4, "later")]
    assert [start["settings"] for start in resumed] == [{"log_every": 2, "resume": True}, {"resume": True}]
    assert resumed[0]["versions"] == first["versions"]
    assert first["time"] <= resumed[0]["time"] <= resumed[1]["time"]
    shutil.rmtree(folder / "checkpoints")
    run(*argv, "--log-every", "2", "--resume")  # from the beginning: nothing is left of what was
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["settings"]["log_every"], facts["revision"]) == (2, "later")
    assert "resumed" not in facts


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_checkpoints_kept_for_good(run, images):
    options = ["--epochs", "4", "--keep", "1", "--save-every", "1", "--keep-every", "2"]
    folder = run("demo", "--data", images, *TINY.split(), *options)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]
    facts = json.loads((folder / "checkpoints/step-00000004/state.json").read_text())
    assert (facts["step"], facts["surroundings"]["threads"]) == (4, 1)


def test_activations_computed_again_change_no_number(run, images, tmp_path, monkeypatch):
    calls = []
    original = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    kept = run("demo", "--data", images, *TINY.split(), "--output", tmp_path / "kept")
    assert not calls
    flags = ["--grad-checkpointing", "--output", tmp_path / "recomputed"]
    recomputed = run("demo", "--data", images, *TINY.split(), *flags)
    assert len(calls) >= 4 * 2  # steps, views
    assert_equal(weights(kept), weights(recomputed))  # BatchNorm's statistics among them
    assert [line["loss"] for line in lines(kept)] == [line["loss"] for line in lines(recomputed)]


def test_a_backbone_that_computes_nothing_again_is_refused():
    with pytest.raises(ValueError, match=r"no gradient checkpointing for plain: drop --grad-checkpointing"):
        build._recompute(torch.nn.Conv2d(3, 4, 1), "plain")


@pytest.fixture
def quick_compiler(monkeypatch):
    """Compile as ever, but for the machine code at the end."""
    quick = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", quick)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def test_compiled_networks_train_as_others_do_and_resume(run, images, tmp_path, quick_compiler):
    options = ["demo", "--data", images, *TINY.split()]
    plain = run(*options, "--output", tmp_path / "plain")
    assert not torch._dynamo.utils.counters["frames"]
    whole = run(*options, "--compile", "--output", tmp_path / "whole")
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 3  # student, teacher, and the one to try
    assert weights(plain).keys() == weights(whole).keys()
    losses = [[line["loss"] for line in lines(folder)] for folder in (plain, whole)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    part = Path(shutil.copytree(whole, tmp_path / "part"))
    shutil.rmtree(part / "checkpoints/step-00000004")
    run(*options, "--compile", "--output", part, "--resume")
    assert differences(whole, part) == []


def test_without_a_compiler_it_is_one_sentence(run, images, monkeypatch):
    def fails(function):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(SystemExit, match=r"^error: torch cannot compile here \(no compiler\): drop --compile"):
        run("demo", "--data", images, *TINY.split(), "--compile")


def test_demo_measures_before_and_after(run, tmp_path, monkeypatch):
    small = scenes.prepare(tmp_path / "cache", train=8, val=3)
    monkeypatch.setattr(scenes, "prepare", lambda: small)
    folder = run("demo", *TINY.split(), figures=True)
    no_numbers = []
    summary = json.loads((folder / "summary.json").read_text(), parse_constant=no_numbers.append)
    assert not no_numbers  # JSON has no NaN
    assert summary["classes"] == list(scenes.CLASSES)
    for side in ("before", "after"):
        assert 0 < summary[side]["miou"] < 1
        assert 0 < summary[side]["pixel_accuracy"] < 1
    with Image.open(folder / "groups.png") as image:
        assert image.height > image.width / 3


def test_fp16_overflow_moves_neither_schedule_nor_teacher(run, images, monkeypatch):
    """The second of four steps is skipped, as the scaler does: rates and teacher wait for the next one."""
    moves, skipped = [], iter([False, True, False, False])
    update = SlotCon.update_teacher
    monkeypatch.setattr(SlotCon, "update_teacher", lambda self, m: (moves.append(m), update(self, m)))
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: next(skipped)))
    rates = [(line["lr"], line["teacher_momentum"]) for line in lines(run("demo", "--data", images, *TINY.split()))]
    assert rates[1] != rates[0]
    assert rates[1] == rates[2] != rates[3]
    assert moves == [rates[0][1], rates[1][1], rates[3][1]]


def test_teacher_moves_once_a_step_whatever_the_accumulation(run, images, monkeypatch):
    moves = []
    monkeypatch.setattr(SlotCon, "update_teacher", lambda self, m: moves.append(m))
    run("demo", "--data", images, *TINY.split(), "--accumulation-steps", "2")
    assert len(moves) == 4


SHORT = "--epochs 1 --warmup-epochs 0"  # two steps


@pytest.mark.parametrize(
    "flags", ["--slot-loss regression", "--align projections", "--image-loss-weight 0.5", "--no-geometric"]
)
def test_ablations(run, images, flags):
    folder = run("demo", "--data", images, *TINY.split(), *SHORT.split(), *flags.split())
    weight = 0.5 if "image" in flags else 0
    found = lines(folder)
    assert len(found) == 2
    for line in found:
        assert ("image_loss" in line) == bool(weight)
        expected = (line["group_loss"] + line["slot_loss"]) / 2 + weight * line.get("image_loss", 0)
        assert line["loss"] == pytest.approx(expected)
    heads = {key for key in weights(folder) if key.startswith("image_loss.")}
    assert bool(heads) == bool(weight)
    for kind in ("backbone", "prototypes"):
        assert not heads & set(load_file(folder / "export" / kind / "model.safetensors"))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_vit"])
def test_any_timm_backbone(run, images, backbone):
    folder = run("demo", "--data", images, *TINY.split(), *SHORT.split(), "--backbone", backbone)
    assert len(lines(folder)) == 2
    x = torch.zeros(1, 3, 32, 32)
    features = timm.create_model(f"local-dir:{folder}/export/backbone", pretrained=True).eval()(x)
    prototypes = timm.create_model(f"local-dir:{folder}/export/prototypes", pretrained=True).eval()
    assert features.shape == (1, prototypes.num_features)
    assert prototypes(x).shape == (1, 5)


@pytest.mark.parametrize(
    ("backbone", "options", "layout"),
    [
        ("slotcon_nano", [], torch.channels_last),
        ("slotcon_nano", ["--no-channels-last"], torch.contiguous_format),
        # Its strided 1 x 1 convolution of the image ends the process in channels_last, without a word.
        ("fastvit_t8", ["--view-size", 96], torch.contiguous_format),
    ],
)
def test_network_and_images_have_the_format_that_works(run, images, monkeypatch, backbone, options, layout):
    layouts = []

    def watched(accelerator, model, slotcon, inputs, **kwargs):
        assert all(view.is_contiguous(memory_format=layout) for view in inputs[0])
        layouts.append(memory_format(slotcon))
        return forward_backward(accelerator, model, slotcon, inputs, **kwargs)

    forward_backward = pretrain.forward_backward
    monkeypatch.setattr(pretrain, "forward_backward", watched)
    run("demo", "--data", images, *TINY.split(), *SHORT.split(), "--backbone", backbone, *options)
    assert layouts == [layout, layout]


def test_a_backbone_for_one_size_alone_is_shown_the_scenes_in_it(run, tmp_path, monkeypatch):
    small = scenes.prepare(tmp_path / "cache", train=8, val=3)
    monkeypatch.setattr(scenes, "prepare", lambda: small)
    folder = run("demo", *TINY.split(), "--backbone", "test_coatnet", *SHORT.split())
    summary = json.loads((folder / "summary.json").read_text())
    assert all(0 < summary[side]["pixel_accuracy"] < 1 for side in ("before", "after"))


def test_a_backbone_that_does_not_take_the_views_is_refused(run, images, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: dla46_c cannot take images of 40 x 40 pixels .*: take another"):
        run("demo", "--data", images, *TINY.split(), "--backbone", "dla46_c", "--view-size", 40)
    assert not (tmp_path / "run").exists()


def test_going_on_from_an_authors_checkpoint(run, images, tmp_path, monkeypatch):
    """A new run takes up the schedule where the checkpoint stands."""
    path = official(tmp_path)
    torch.save({**read_checkpoint(path), "epoch": 1}, path)
    options = [*TINY.split(), "--backbone", "slotcon_r18", "--hidden-dim", "12", "--out-dim", "7"]
    folder = run("demo", "--data", images, *options, "--continue-from", path)
    assert [line["step"] for line in lines(folder)] == [3, 4]
    for line in lines(folder):
        taken = line["step"] - 1
        assert line["lr"] == pytest.approx(lr_at(taken, base_lr=0.25, warmup_steps=2, total_steps=4))
        assert line["teacher_momentum"] == pytest.approx(teacher_momentum(taken, 4, 0.95))
    teacher = from_official(read_checkpoint(path))["teacher.prototypes.weight"]
    assert 0 < (weights(folder)["teacher.prototypes.weight"] - teacher).abs().max() < 0.5

    def stop(ready, *_):
        raise Diverged(f"{ready.run.step} steps behind us")

    monkeypatch.setattr(pretrain, "fit", stop)
    path.unlink()  # to resume the new run, it is not needed
    with pytest.raises(SystemExit, match="4 steps behind us"):
        run("demo", "--data", images, *options, "--continue-from", path, "--output", folder, "--resume")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accumulation_and_precision(run, images, precision):
    options = ["--accumulation-steps", "2", "--mixed-precision", precision, "--optimizer", "sgd"]
    folder = run("demo", "--data", images, *TINY.split(), *options)
    assert json.loads((folder / "run.json").read_text())["mixed_precision"] == precision
    assert all(np.isfinite(line["loss"]) for line in lines(folder))


def test_two_processes_really_are_two_and_stream_their_parts(images, tmp_path):
    output = tmp_path / "run"
    options = ["--data", write_parquet(tmp_path, images), "--streaming", "--workers", 2, "--output", output]
    run = Launch(["demo", *TINY.split(), *options, "--grad-checkpointing"], tmp_path / "log", processes=2)
    assert not any(run.end()), run.log.read_text()
    facts = json.loads((output / "run.json").read_text())
    assert (facts["processes"], facts["micro_batch"], facts["images"]) == (2, 2, 10)
    assert [line["step"] for line in lines(output)] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in lines(output))


def test_launched_as_a_module_and_the_errors_of_a_launch(tmp_path):
    accelerate = [str(Path(sys.executable).parent / "accelerate"), "launch", "-m", "training.pretrain"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*accelerate, "demo", "--data", str(tmp_path / "nowhere")],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert "error: there is no folder" in done.stderr
    assert "training/" not in done.stderr.split("Traceback")[0]
    assert f'File "{ROOT}/' not in done.stderr  # the traceback that follows is the launcher's own


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["imagenet"], "there is no recipe 'imagenet': choose one of demo, imagenette_80ep, imagenette_20ep"),
        (["coco_800ep"], "coco_800ep needs images: add --data"),
        (["demo", "--data", "{empty}"], "holds no .*file, at any depth"),
        (["demo", "--data", "{images}", "--batch-size", "64"], "10 images do not fill a batch"),
        (["demo", "--data", "{images}", "--num-prototypes", "1"], "use at least 2"),
        (["demo", "--data", "{images}", *TINY.split(), "--trackers", "aim"], "tracker aim is not installed"),
        (["demo", "--data", "{images}", *TINY.split(), "--backbone", "resnet5000"], "resnet5000"),
        (["demo", "--data", "{images}", *TINY.split(), "--backbone", "resnet18.none"], "timm cannot make"),
        (["demo", "--data", "{images}", *TINY.split(), "--backbone", "test_vit_relpos"], "would stay random"),
        (
            ["demo", "--data", "{images}", *TINY.split(), "--continue-from", "none.pth"],
            "there is no checkpoint at",
        ),
        (
            ["demo", "--data", "{images}", *TINY.split(), "--resume", "--output", "{images}"],
            "has other files than a run",
        ),
        (["demo", "--data", "{images}", *TINY.split(), "--mixed-precision", "fp16"], "fp16 needs a GPU"),
        (["demo", "--data", "{images}", *TINY.split(), "--output", "{images}/0.jpg"], r"0\.jpg is a file"),
        (
            ["demo", "--data", "{images}", *TINY.split(), "--output", "{images}/0.jpg/run"],
            "run cannot be created in it",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(run, images, tmp_path, args, words):
    (tmp_path / "empty").mkdir()
    args = [a.format(empty=tmp_path / "empty", images=images) for a in args]
    with pytest.raises(SystemExit, match=words) as stop:
        run(*args)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_is_not_complete_is_warned_of_once(run, images, capsys):
    images.rename(images.parent / "train2017")
    for place in (images.parent, images.parent / "train2017"):
        with pytest.raises(SystemExit, match="timm cannot make"):
            run("coco_800ep", "--data", place, *TINY.split(), "--backbone", "nonsense")
        warning = f"warning: COCO train2017 has 118,287 images, 10 were found in {place}: check for missing"
        assert capsys.readouterr().err.count(warning) == 1


def test_an_output_in_use_is_left_alone(run, images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious").touch()
    with pytest.raises(SystemExit, match="holds a run already: add --resume"):
        run("demo", "--data", images, *TINY.split())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious"]


def test_resuming_with_another_shape_or_other_settings_is_refused(run, images):
    folder = run("demo", "--data", images, *TINY.split())
    before = (folder / "run.json").read_text()
    with pytest.raises(SystemExit, match="this run has batch_size=4, not 2: resume it with the recipe and options"):
        run("demo", "--data", images, *TINY.split(), "--resume", "--batch-size", "2", "--output", folder)
    assert (folder / "run.json").read_text() == before
    with pytest.raises(SystemExit, match=r"is of another model .* resume with the recipe"):
        run("demo", "--data", images, *TINY.split(), "--resume", "--num-prototypes", "6", "--output", folder)


def test_more_epochs_are_a_new_run_that_goes_on_from_the_old_one(run, images, tmp_path):
    options = ["demo", "--data", images, *TINY.split()]
    folder = run(*options)
    words = f"this run has epochs=2, not 3, .* start a new run with --continue-from {folder} --epochs 3, without"
    with pytest.raises(SystemExit, match=words):
        run(*options, "--epochs", "3", "--resume", "--output", folder)
    new = run(*options, "--epochs", "3", "--continue-from", folder, "--output", tmp_path / "new")
    assert [line["step"] for line in lines(new)] == [5, 6]


def test_a_backbone_with_a_tag_starts_from_its_weights_and_is_not_asked_for_them_again(run, images, monkeypatch):
    options = ["demo", "--data", images, *TINY.replace("slotcon_nano", "slotcon_nano.imagenette_80ep").split()]
    starts = []
    fit = pretrain.fit

    def see(ready, *others):
        starts.append({k: v.clone() for k, v in ready.slotcon.state_dict().items()})
        fit(ready, *others)

    monkeypatch.setattr(pretrain, "fit", see)
    folder = run(*options)
    weights = timm.create_model("slotcon_nano.imagenette_80ep", pretrained=True, num_classes=0).state_dict()
    for side in ("student", "teacher"):
        assert_equal({k: starts[0][f"{side}.backbone.{k}"] for k in weights}, weights)
    assert json.loads((folder / "run.json").read_text())["settings"]["backbone"] == "slotcon_nano.imagenette_80ep"
    card = (folder / "export/backbone/README.md").read_text()
    assert "It started from the weights slotcon_nano.imagenette_80ep." in card
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained=False, **k: create(*a, **k))  # as if not there
    shutil.rmtree(folder / "checkpoints/step-00000004")
    run(*options, "--resume", "--output", folder)
    first = f"student.backbone.{next(iter(weights))}"
    assert not torch.equal(starts[1][first], starts[0][first])


def test_weights_of_a_backbone_that_are_not_to_be_had_are_no_random_ones(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = (
        r"^error: the weights resnet18.a1_in1k cannot be loaded \(.*\): connect to the Hub, or name the backbone"
    )
    with pytest.raises(SystemExit, match=words) as stop:
        run("demo", "--data", images, *TINY.split(), "--backbone", "resnet18.a1_in1k")
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_images_cannot_be_drawn_ends_well(run, images, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("no memory\nand a long story")

    monkeypatch.setattr(Showcase, "draw", fails)
    folder = run("demo", "--data", images, *TINY.split())
    assert (folder / "summary.json").is_file()
    assert "warning: groups.png could not be drawn: no memory\n" in capsys.readouterr().err


def test_a_killed_worker_is_one_sentence(images, tmp_path):
    options = ["--data", images, *TINY.split(), "--workers", 2, "--epochs", 500, "--show-every", 0]
    launch = Launch(["demo", *options, "--output", tmp_path / "run"], tmp_path / "log")
    while launch.running() and not (tmp_path / "run/metrics.jsonl").exists():
        time.sleep(0.05)
    worker, *_ = psutil.Process(launch.ranks[0].pid).children()
    worker.kill()
    assert launch.end() == [1]
    said = launch.log.read_text()
    assert "error: a worker that loads images was killed (" in said
    assert "use fewer --workers: --resume continues from the last checkpoint\n" in said
    assert "Traceback" not in said


def test_ctrl_c_before_the_first_step_is_one_sentence(run, images, monkeypatch):
    monkeypatch.setattr(pretrain, "prepare", interrupt)
    with pytest.raises(SystemExit, match=r"^error: interrupted before the first step$"):
        run("demo", "--data", images, *TINY.split())


def test_images_may_move_but_not_change(run, images, tmp_path):
    options = ["demo", *TINY.split()]
    folder = run(*options, "--data", images)
    shutil.rmtree(folder / "checkpoints/step-00000004")
    moved = tmp_path / "scratch/job-2"
    moved.parent.mkdir()
    images.rename(moved)
    (moved / "0.jpg").rename(moved / "other.jpg")
    words = r"job-2 holds 10 images, which are not the 10 of this run, by their names .*: give --data the folder"
    with pytest.raises(SystemExit, match=words):
        run(*options, "--data", moved, "--resume", "--output", folder)
    (moved / "other.jpg").rename(moved / "0.jpg")
    run(*options, "--data", moved, "--layout", "coco", "--split", "any", "--resume", "--output", folder)
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4]


def test_a_setting_that_is_younger_than_the_run_has_its_default(run, images):
    options = ["demo", "--data", images, *TINY.split()]
    folder = run(*options)
    state = folder / "checkpoints/step-00000004/state.json"
    facts = json.loads(state.read_text())
    for settings, setting in (
        (facts["settings"], "accumulation_steps"),
        (facts["settings"], "digest"),
        (facts["settings"]["slotcon"], "image_loss_weight"),
    ):
        del settings[setting]
    facts["settings"]["slotcon"]["no_longer_there"] = 1
    state.write_text(json.dumps(facts))
    sums = state.with_name("SHA256SUMS")
    sums.write_text(re.sub(r"\w+(?=  state)", sha256(state), sums.read_text()))
    with pytest.raises(SystemExit, match="this run has accumulation_steps=1, not 2"):
        run(*options, "--accumulation-steps", "2", "--resume", "--output", folder)
    with pytest.raises(SystemExit, match="this run has slotcon="):
        run(*options, "--teacher-temp", "0.05", "--resume", "--output", folder)
    run(*options, "--resume", "--output", folder)


def test_all_processes_must_see_the_same_images(images, tmp_path):
    for place, left_out in (("0", None), ("1", "1.jpg")):
        shutil.copytree(images, tmp_path / place)
        (tmp_path / place / "deeper" / (left_out or "none")).unlink(missing_ok=True)
    argv = ["demo", "--data", tmp_path / "RANK", *TINY.split(), "--output", tmp_path / "run"]
    launch = Launch(argv, tmp_path / "log", 2, main=on_a_disk_of_its_own)
    assert launch.end() == [1, 1]
    said = launch.log.read_text()
    assert said.count("error: process 1 finds other images than process 0, 9 and 10 of them: put the same") == 2
    shutil.rmtree(tmp_path / "1")
    launch = Launch(argv, tmp_path / "log-2", 2, main=on_a_disk_of_its_own)
    assert launch.end() == [1, 1]
    assert launch.log.read_text().count("error: there is no folder ") == 2
    assert not (tmp_path / "run").exists()


def on_a_disk_of_its_own(argv: list[str]) -> None:
    """Train on the images of this process."""
    pretrain.main([word.replace("RANK", os.environ["RANK"]) for word in argv])


def test_unreadable_images_stop_the_run_with_a_list(run, images, tmp_path):
    for name in ("bad.jpg", "worse.jpg"):
        (images / name).write_bytes(b"not an image")
    with pytest.raises(SystemExit, match=r"(?s)2 of 12 images cannot be read, more than 1%.*bad\.jpg.*worse\.jpg"):
        run("demo", "--data", images, *TINY.split(), "--epochs", "8")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_stream_that_breaks_off_stops_the_run(run, images, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(streaming, "PAUSES", (0,))
    file = write_parquet(tmp_path, images)
    start = pretrain.start
    monkeypatch.setattr(pretrain, "start", lambda job: (start(job), file.unlink()))
    with pytest.raises(SystemExit, match=r"^error: .*images\.parquet could not be read: .*No such file") as stop:
        run("demo", "--data", file, "--streaming", *TINY.split(), "--workers", workers, "--epochs", "30")
    assert "\n" not in str(stop.value)


def test_one_unreadable_image_among_many_is_skipped_and_named(run, images, capsys):
    for i in range(120):
        (images / f"copy-{i}.jpg").write_bytes((images / "0.jpg").read_bytes())
    (images / "bad.jpg").write_bytes(b"not an image")
    run("demo", "--data", images, *TINY.split(), "--batch-size", "64")
    assert capsys.readouterr().err.count("skipped, since it cannot be read: ") == 1


def test_a_loss_that_is_no_number_stops_the_run(run, images, tmp_path):
    options = ["--optimizer", "sgd", "--base-lr", "1e30", "--warmup-epochs", "0"]
    with pytest.raises(
        SystemExit, match=r"step \d gave a loss that is NaN or infinite, in .*: lower the learning rate"
    ):
        run("demo", "--data", images, *TINY.split(), *options)
    assert len(lines(tmp_path / "run")) < 4


def test_gradients_that_are_no_numbers_are_never_saved(run, images, tmp_path, monkeypatch):
    """In the very step that saves, whose loss is still one."""
    forward_backward = pretrain.forward_backward

    def overflow(accelerator, model, slotcon, batch, **options):
        out = forward_backward(accelerator, model, slotcon, batch, **options)
        calls.append(1)
        if len(calls) == 4:
            next(slotcon.student.projector.parameters()).grad.fill_(np.nan)
        return out

    calls: list[int] = []
    monkeypatch.setattr(pretrain, "forward_backward", overflow)
    with pytest.raises(SystemExit, match="error: step 4 gave gradients that are NaN or infinite: lower the"):
        run("demo", "--data", images, *TINY.split())
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    assert len(lines(tmp_path / "run")) == 3


def test_training_on_the_cpu_takes_the_cores_it_may_use_unless_told(run, images, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(cpu, "usable_cores", lambda: 6)
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    wrong = ["--backbone", "nonsense"]  # stops it right after
    for options, neighbours in (([], "1"), ([], "4"), (["--threads", "3"], "1")):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", neighbours)
        with pytest.raises(SystemExit, match="timm cannot make"):
            run("imagenette_20ep", "--data", images, *TINY.replace("--threads 1", "").split(), *options, *wrong)
    assert chosen == [6, 1, 3]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with pytest.raises(SystemExit, match="timm cannot make"):
        run("imagenette_20ep", "--data", images, *TINY.replace("--threads 1", "").split(), *wrong)
    assert chosen[3] == 5


def test_help(capsys):
    for argv in (["--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit):
            pretrain.main(argv)
    text = capsys.readouterr().out
    assert "in1k_200ep" in text
    assert "--num-prototypes" in text

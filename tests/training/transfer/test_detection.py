"""The training script of detection on made-up scenes: it learns, resumes exactly, in one process and in two."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import coco_folders
import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from launched import launched
from runs import assert_equal, lines, weights
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn

from slotcon_hub.publishing.card_metadata import metadata
from slotcon_hub.weights.table import ROWS
from training.data.coco import CocoImages, find_coco
from training.engine.batchnorm import average_batchnorm
from training.engine.step import Step
from training.transfer import detection
from training.transfer.mask_rcnn.config import MaskRCNNConfig
from training.transfer.mask_rcnn.evaluation import detect_all
from training.transfer.mask_rcnn.model import MaskRCNN
from training.transfer.mask_rcnn.prepare import make_optimizer
from training.transfer.mask_rcnn.recipes import COCO_1X, RECIPES, lr_at
from training.transfer.mask_rcnn.result import card_results, load, save
from training.transfer.mask_rcnn.torchvision_format import to_torchvision

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    coco_folders.write_coco(root, "train", 12)
    coco_folders.write_coco(root, "val", 7, seed=1)
    return root


def options(scenes, *more):
    words = ["--data", scenes, "--backbone", "slotcon_nano.imagenette_20ep", "--batch-size", 2]
    words += ["--channels", 32, "--workers", 0]
    words += ["--short-sides", 64, 72, "--test-side", 64, "--longest-side", 128, "--proposals", 50]
    words += ["--regions", 32, "--warmup-steps", 10, "--recalibration-steps", 8]
    words += ["--threads", 1, "--log-every", 1, "--trackers"]
    return [str(word) for word in (*words, *more)]


@pytest.fixture
def train(tmp_path, monkeypatch, scenes):
    """Run the script in this process; Accelerate's state is made anew each time."""

    def call(*more, output="run"):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        detection.main(["coco_1x", *options(scenes, *more, "--output", tmp_path / output)])
        return tmp_path / output

    return call


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_short_training_beats_its_start(train, scenes, capsys):
    """From no object found to many of them; what the run leaves behind is loaded and finds the same."""
    start = train("--steps", 1, "--lr", 1e-9, "--trackers", "tensorboard", output="start")
    assert results_of(start)["boxes"]["AP50"] < 5
    assert list(start.rglob("events.out.tfevents.*"))
    capsys.readouterr()
    folder = train("--steps", 100, "--lr", 0.05, "--test-every", 50)
    found = results_of(folder)
    assert found["boxes"]["AP50"] > 20
    assert found["masks"]["AP50"] > 20
    out = capsys.readouterr().out
    assert "all 70 tensors loaded from slotcon_nano" in out
    assert "random: the 112 tensors of pyramid" in out
    assert f"{found['boxes']['AP']:.2f}" in out
    middle = next(line for line in lines(folder) if line["step"] == 50)
    assert {"box_ap", "mask_ap", "loss_rpn_cls", "loss_mask"} <= middle.keys()
    assert (folder / "detections.html").read_text().count('alt="truth"') == 7

    detector = load(folder / "export")
    assert detector.config.classes == ("disc", "square")
    images = CocoImages(*find_coco(scenes, "val"))
    assert detect_all(detector, images) == json.loads((folder / "detections.json").read_text())


def test_a_detector_needs_no_folder_of_its_backbone(train, tmp_path):
    save_for_hf(timm.create_model("resnet18", num_classes=0), tmp_path / "model")
    folder = train("--steps", 1, "--backbone", tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    detector = load(folder / "export")
    assert detector.config.backbone == "resnet18"
    assert_equal(detector.state_dict(), load_file(folder / "export/model.safetensors"))
    assert len(to_torchvision(detector).state_dict()) > 200


@pytest.mark.parametrize(
    ("backbone", "cfg", "mean", "std"),
    [
        ("slotcon_nano", {}, MaskRCNNConfig.mean, MaskRCNNConfig.std),
        ("resnet18", {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.2, 0.1)}, (127.5, 102.0, 76.5), (127.5, 51.0, 25.5)),
    ],
)
def test_images_are_normalised_by_the_statistics_of_the_backbone(backbone, cfg, mean, std, train, tmp_path):
    """Those of SlotCon are the paper's; all are saved, read back, and stated in other formats."""
    net = timm.create_model(backbone, num_classes=0)
    net.pretrained_cfg.update(cfg)
    save_for_hf(net, tmp_path / "model")
    folder = train("--steps", 1, "--recalibration-steps", 1, "--backbone", tmp_path / "model")
    detector = load(folder / "export")
    assert (detector.config.mean, detector.config.std) == (mean, std)
    image = torch.tensor(mean)[:, None, None].expand(3, 32, 32) + torch.tensor(std)[:, None, None]
    torch.testing.assert_close(detector.batch([image])[0], torch.ones(1, 3, 32, 32))
    if cfg:
        transform = to_torchvision(detector).transform
        assert (transform.image_mean, transform.image_std) == (
            pytest.approx(cfg["mean"]),
            pytest.approx(cfg["std"]),
        )


def test_a_run_resumes_exactly(train, monkeypatch):
    """One that was killed behind its first checkpoint; so are what sampling draws, and the tests in between."""
    more = ["--steps", 5, "--save-every", 2, "--test-every", 2, "--scratch"]
    whole = train(*more, output="whole")

    def kill(step, lr):
        if step.number == 4:
            raise KeyboardInterrupt
        set_lr(step, lr)

    set_lr = Step.set_lr
    with monkeypatch.context() as patch:
        patch.setattr(Step, "set_lr", kill)
        with pytest.raises(SystemExit, match="interrupted"):
            train(*more, output="killed")
    folder = train(*more, "--resume", output="killed")
    assert_equal(weights(folder), weights(whole))
    assert_equal(load_file(folder / "export/model.safetensors"), load_file(whole / "export/model.safetensors"))
    assert (folder / "detections.json").read_text() == (whole / "detections.json").read_text()
    drop = {"images_per_second", "data_wait", "memory_gb"}
    kept = [[{k: v for k, v in line.items() if k not in drop} for line in lines(one)] for one in (folder, whole)]
    assert str(kept[0]) == str(kept[1])  # NaN is NaN


def test_accumulated_steps_and_bf16_are_nearly_the_same(train):
    """Of what is summed or rounded otherwise; BatchNorm sees other batches, and sampling draws others."""
    firsts = [
        lines(train("--steps", 1, *more, output=str(n)))[0]["loss"]
        for n, more in enumerate([(), ("--accumulation-steps", 2), ("--mixed-precision", "bf16")])
    ]
    assert len(set(firsts)) == 3
    assert firsts[1:] == pytest.approx(firsts[:1] * 2, rel=0.1)


def test_two_processes_train_and_test_as_one(train, scenes, tmp_path):
    """What is drawn differs by process, but not the images of a step; each test image is looked at once."""
    one = train("--steps", 2)
    script = [ROOT / "training/transfer/detection.py", "coco_1x", *options(scenes, "--steps", 2)]
    said = launched(tmp_path / "two", [*script, "--output", tmp_path / "both"], processes=2)
    both = tmp_path / "both"
    assert said.count("of masks") == 1
    assert json.loads((both / "run.json").read_text())["processes"] == 2
    first = [lines(folder)[0] for folder in (one, both)]
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=0.05)
    images = CocoImages(*find_coco(scenes, "val"))
    theirs = json.loads((both / "detections.json").read_text())
    assert detect_all(load(both / "export"), images) == theirs


def test_recalibration_is_an_option(train):
    folders = [train("--steps", 2, "--recalibration-steps", n, output=str(n)) for n in (0, 3)]
    assert_equal(weights(folders[0]), weights(folders[1]))
    states = [load_file(folder / "export/model.safetensors") for folder in folders]
    differ = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert {name.rpartition(".")[2] for name in differ} == {"running_mean", "running_var", "num_batches_tracked"}


def test_no_unreadable_test_image_is_left_out_of_the_numbers(train, scenes, tmp_path):
    """Once it is repaired, the run is only tested."""
    shutil.copytree(scenes, tmp_path / "broken")
    file = tmp_path / "broken/val2017/3.png"
    file.write_bytes(b"nothing")
    for workers in (0, 1):
        more = ["--steps", 1, "--data", tmp_path / "broken", "--workers", workers, "--recalibration-steps", 1]
        with pytest.raises(
            SystemExit, match=r"error: .*val2017/3.png cannot be read: .*: repair it, since"
        ) as stop:
            train(*more, *(["--resume"] if workers else []))
        assert "\n" not in str(stop.value)
    file.write_bytes((scenes / "val2017/3.png").read_bytes())
    assert (train(*more, "--resume") / "results.json").is_file()


def test_what_cannot_be_read_ends_in_a_sentence(train, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "broken")
    for file in (tmp_path / "broken" / "train2017").iterdir():
        file.write_bytes(b"nothing")
    for workers in (0, 1):
        more = ["--steps", 2, "--data", tmp_path / "broken", "--workers", workers]
        with pytest.raises(SystemExit, match=r"error: .*train2017/\d+.png cannot be read") as stop:
            train(*more, output=f"workers{workers}")
        assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--backbone", "slotcon_r34"], "slotcon_r34"),
        (["--backbone", "vit_tiny_patch16_224", "--scratch"], "have strides"),
        (["--data", "nowhere"], "has no annotations of its train images"),
        (["--batch-size", "3", "--accumulation-steps", "2"], "does not divide"),
    ],
)
def test_mistakes_end_in_one_sentence(more, sentence, train, tmp_path):
    with pytest.raises(SystemExit, match=sentence) as stop:
        train(*more)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "run").exists()


def test_train_and_val_must_have_the_same_classes(train, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "other")
    content = json.loads((scenes / "annotations/instances_val2017.json").read_text())
    content["categories"][0]["name"] = "cube"
    coco_folders.write_json(tmp_path / "other", "val", content)
    with pytest.raises(SystemExit, match="have other categories"):
        train("--data", tmp_path / "other")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"short_sides": ()}, r"short_sides=\(\) must be at least 1"),
        ({"regions": 0}, "regions=0 must be at least 1"),
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"lr": math.nan}, "finite number"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must not be negative"),
        ({"save_every": 4, "keep_every": 6}, "no multiple of save_every"),
    ],
)
def test_impossible_values_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(COCO_1X, **values)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "a recipe is missing: name one of coco_1x, coco_2x first"),
        (["--steps", "9"], "a recipe is missing: name one of coco_1x, coco_2x first"),
        (["voc"], "there is no recipe 'voc': choose one of coco_1x, coco_2x"),
        (["coco_2x"], "coco_2x needs images: add --data DIR"),
    ],
)
def test_a_recipe_and_its_data_must_be_named(argv, sentence):
    with pytest.raises(SystemExit, match=sentence):
        detection.main(argv)


def test_help_names_the_recipes_and_their_options(capsys):
    for argv, words in ((["--help"], "coco_2x"), (["coco_1x", "--help"], "--recalibration-steps")):
        with pytest.raises(SystemExit) as stop:
            detection.main(argv)
        assert stop.value.code == 0
        assert words in capsys.readouterr().out


def test_recipes_are_those_of_the_paper():
    once, twice = (recipe for _, recipe in RECIPES.values())
    assert (once.batch_size, once.lr, once.weight_decay, once.mixed_precision) == (16, 0.02, 1e-4, "no")
    assert (once.short_sides, once.longest_side, once.test_side) == ((640, 672, 704, 736, 768, 800), 1333, 800)
    assert (once.proposals, once.regions, once.recalibration_steps) == (1000, 512, 200)
    rates = [lr_at(step, once) for step in (0, 500, 1000, 59_999, 60_000, 79_999, 80_000)]
    assert rates == pytest.approx([2e-5, 0.01001, 0.02, 0.02, 0.002, 0.002, 0.0002])
    assert [lr_at(step, twice) for step in (119_999, 120_000, 160_000)] == pytest.approx([0.02, 0.002, 0.0002])


def test_batchnorm_statistics_are_the_plain_average_of_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3))
    batches = [torch.randn(5, 3, 2, 2) for _ in range(4)]
    average_batchnorm(model, ((batch,) for batch in batches))
    with torch.no_grad():
        found = [torch.var_mean(model[0](batch), dim=(0, 2, 3)) for batch in batches]
    variance, average = (torch.stack(part).mean(0) for part in zip(*found, strict=True))
    torch.testing.assert_close(model[1].running_mean, average)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].momentum == 0.3
    assert not model.training


def test_norms_are_not_decayed_and_biases_are():
    detector = MaskRCNN(MaskRCNNConfig.numbered(2, backbone="slotcon_nano", channels=16))
    names = {p: name for name, p in detector.named_parameters()}
    groups = make_optimizer(detector, 0.02, 1e-4).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4, 0]
    decayed, norms = ({names[p] for p in group["params"]} for group in groups)
    assert decayed | norms == set(names.values())
    modules = dict(detector.named_modules())
    assert norms == {n for n in names.values() if isinstance(modules[n.rpartition(".")[0]], nn.BatchNorm2d)}
    assert "rpn.head.cls_logits.bias" in decayed


def test_random_weights_are_drawn_as_in_detectron2():
    torch.manual_seed(0)
    detector = MaskRCNN(MaskRCNNConfig.numbered(80, backbone="resnet18", channels=64))
    state = detector.state_dict()
    for name, std in {
        "rpn.head.conv.0.0": 0.01,
        "rpn.head.bbox_pred": 0.01,
        "roi_heads.box_predictor.cls_score": 0.01,
        "roi_heads.box_predictor.bbox_pred": 0.001,
        "roi_heads.mask_predictor.mask_fcn_logits": 0.001,
        "roi_heads.mask_head.0.0": (2 / (9 * 64)) ** 0.5,
        "roi_heads.box_head.0.0": (2 / (9 * 64)) ** 0.5,
        "roi_heads.box_head.5": (1 / (49 * 64)) ** 0.5,
        "backbone.fpn.layer_blocks.0.0": (1 / (9 * 64)) ** 0.5,
    }.items():
        assert state[f"{name}.weight"].std().item() == pytest.approx(std, rel=0.05)
        assert not state.get(f"{name}.bias", torch.zeros(1)).any()
    assert all((v == 1).all() for n, v in state.items() if n.endswith("bn2.weight"))


@pytest.fixture
def detector():
    torch.manual_seed(0)
    detector = MaskRCNN(MaskRCNNConfig(backbone="resnet18", classes=("a", "b"), channels=16, test_side=64))
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return detector.eval()


def test_a_saved_detector_is_read_back(detector, tmp_path):
    save(detector, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]
    back = load(tmp_path / "saved")
    assert back.config == detector.config
    assert not back.training
    assert_equal(back.state_dict(), detector.state_dict())
    (tmp_path / "saved/config.json").write_text(json.dumps({"backbone": "resnet18", "classes": ["a"]}))
    with pytest.raises(ValueError, match="do not fit each other"):
        load(tmp_path / "saved")
    with pytest.raises(ValueError, match="holds no detector"):
        load(tmp_path)


def test_torchvision_computes_the_same_from_the_same_weights(detector):
    """Maps, proposals' logits, scores and masks of equal regions; and nearly the same detections."""
    theirs = to_torchvision(detector)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        batch, _ = detector.batch([image])
        maps = detector.backbone(batch)
        other = theirs.backbone(theirs.transform([image / 255])[0].tensors)
        for ours, their in zip(maps, other.values(), strict=True):
            torch.testing.assert_close(ours, their, rtol=1e-3, atol=1e-4)
        for ours, their in zip(detector.rpn.head(maps), theirs.rpn.head(maps), strict=True):
            assert all(torch.equal(*pair) for pair in zip(ours, their, strict=True))
        pooled = torch.rand(3, 16, 7, 7)
        features = detector.roi_heads.box_head(pooled)
        scores, deltas = detector.roi_heads.box_predictor(features)
        their_scores, their_deltas = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
        torch.testing.assert_close(their_scores, scores[:, [2, 0, 1]])
        torch.testing.assert_close(their_deltas[:, 4:], deltas)
        regions = torch.rand(3, 16, 14, 14)
        masks = detector.roi_heads.mask_predictor(detector.roi_heads.mask_head(regions))
        their_masks = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(regions))
        torch.testing.assert_close(their_masks[:, 1:], masks)
        (found,) = theirs([image / 255])
    assert set(found["labels"].tolist()) <= {1, 2}
    with pytest.raises(ValueError, match="only on plain ResNets"):
        to_torchvision(MaskRCNN(MaskRCNNConfig.numbered(2, backbone="slotcon_nano", channels=16)))


def test_measured_precision_becomes_rows_of_a_card():
    numbers = {"boxes": {"AP": 40.96}, "masks": {"AP": 37.02}}
    rows = tuple(card_results(numbers, "COCO val2017", "Mask R-CNN R50-FPN 1x", "accelerate launch ..."))
    assert [(row.metric, row.value, row.source) for row in rows] == [
        ("box AP", 41.0, "measured with this package"),
        ("mask AP", 37.0, "measured with this package"),
    ]
    assert "object-detection" in metadata(replace(ROWS[0], results=rows), "slotcon/x")

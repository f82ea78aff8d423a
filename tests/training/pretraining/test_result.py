"""What a run ends with: its numbers, and the commands that come next."""

from dataclasses import replace

import pytest

from training.pretraining.preview import Showcase
from training.pretraining.recipes import DEMO
from training.pretraining.result import as_rows, by_class, next_commands, print_result, summarize

LINES = [
    {"loss": 4.0, "active_slots": 3.0, "knn": 0.2, "epoch": 1.0},
    {"loss": 3.5, "active_slots": 2.5, "knn": 0.4321, "epoch": 2.0},
    {"loss": 3.25, "active_slots": 2.0, "epoch": 3.0},
]


def test_the_last_probe_is_part_of_the_result():
    summary = summarize(LINES, None, None)
    assert summary == {"loss": 3.25, "active_slots": 2.0, "probe": {"knn": 0.4321, "epoch": 2.0}}
    assert as_rows(summary)["accuracy of 20 nearest neighbours, %, epoch 2"] == ("", "43.2")
    assert by_class(summary) == []
    assert "probe" not in summarize(LINES[2:], None, None)


def test_a_run_whose_images_cannot_be_shown_ends_all_the_same(tmp_path, capsys):
    Showcase([]).draw(None, None, tmp_path / "groups.png")
    (tmp_path / "export").mkdir()
    print_result(tmp_path, summarize(LINES, None, None), {})
    out = capsys.readouterr().out
    assert f"weights: {tmp_path}/export" in out
    assert "groups:" not in out


def test_a_run_without_a_start_has_only_an_end(tmp_path, capsys):
    after = {"miou": 0.125, "pixel_accuracy": 0.5, "iou": [0.25] + [None] * 11, "match": [3, 0]}
    summary = summarize(LINES, None, after)
    assert as_rows(summary)["held-out mIoU, %"] == ("", "12.5")
    sky, mountain, *_ = by_class(summary)
    assert sky == {"name": "sky", "before": "", "after": "25.0", "prototype": "1"}
    assert mountain == {"name": "mountain", "before": "", "after": "", "prototype": ""}
    run = tmp_path / "[a]"
    (run / "export").mkdir(parents=True)
    print_result(run, summary, {"do this": "that"})
    out = capsys.readouterr().out
    assert f"weights: {run}/export" in out
    assert "  do this\n      that\n" in out
    assert " after " in out
    assert " before " not in out.split("IoU before")[0], "an empty column"
    assert "nan" not in out
    assert "None" not in out


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("slotcon_nano", "slotcon_nano"),
        ("resnet18", "slotcon_r18"),
        ("resnet50.a1_in1k", "slotcon_r50"),
        ("vgg11", None),
    ],
)
def test_the_next_commands(tmp_path, backbone, name):
    run = tmp_path / "my run"
    recipe = replace(DEMO, backbone=backbone, data=str(tmp_path))
    report, concepts, *rest = next_commands(run, recipe, tmp_path)
    assert report == f"python -m training.report '{run}'"
    assert concepts == f"slotcon-hub concepts --model '{run}' --images {tmp_path}"
    assert rest == ([f"slotcon-hub import '{run}' {name}.mine"] if name else [])
    _, concepts, *_ = next_commands(run, recipe, None)
    assert concepts.endswith("--images FOLDER")

"""The page of a run: what is on it, for runs that are finished, going on, or none."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.evaluation.figures import draw_groups
from training.tools.report import write_page

ROOT = Path(__file__).parents[3]
PNG = b"\x89PNG"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "demo <1>"
    folder.mkdir()
    line = {"loss": 3.2, "group_loss": 4.0, "slot_loss": 2.4, "lr": 0.5, "epoch": 0.5}
    lines = [json.dumps({"step": step, **line}) for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30, "lo']))
    return folder


def images(page: str) -> list[bytes]:
    return [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]


def test_a_run_that_goes_on(run):
    page = write_page(run).read_text()
    assert "step 20, epoch 0.5, loss 3.200" in page
    assert "demo &lt;1&gt;" in page
    assert "<1>" not in page
    assert len(images(page)) == 1
    assert images(page)[0].startswith(PNG)
    assert "Result" not in page


def rows(page: str) -> dict[str, list[str]]:
    """Of each row of a table its first cell, and the others."""
    found = (re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page))
    return {first: rest for first, *rest in found}


def test_a_finished_run_with_all_there_is(run):
    data = "/scratch/" + "deep/" * 30 + "images"
    settings = {
        "slotcon": {"num_prototypes": 16},
        "data": data,
        "probe": None,
        "geometric": True,
        "base_lr": 0.1 + 0.2,
    }
    facts = {"recipe": "demo", "steps": 20, "settings": settings, "versions": {"torch": "2.9", "timm": "1"}}
    facts["resumed"] = [{"step": 5, "time": "noon", "settings": {"data": "/a"}}, {"step": 9, "settings": {}}]
    (run / "run.json").write_text(json.dumps(facts))
    before = {"miou": 0.05, "pixel_accuracy": 0.2, "iou": [0.1, None], "match": [1, 0, -1]}
    after = {"miou": 0.25, "pixel_accuracy": 0.5, "iou": [0.123456, None], "match": [-1, -1, 0]}
    probe = {"knn": 0.60512, "epoch": 15.0}
    summary = {"loss": 3.2, "active_slots": 2.0, "probe": probe, "classes": ["sky", "<sea>"]}
    (run / "summary.json").write_text(json.dumps({**summary, "before": before, "after": after}))
    (run / "warnings.txt").write_text("data is waited for & more\n")
    (run / "slots").mkdir()
    image = [np.zeros((8, 12, 3), np.uint8)] * 2
    for path in (run / "groups.png", run / "slots" / "epoch-0001.png"):
        draw_groups({"images": image, "groups": image}, path)
    page = write_page(run).read_text()
    assert "demo: step 20 of 20" in page
    assert "data is waited for &amp; more" in page
    expected = {
        "held-out mIoU, %": ["5.0", "25.0"],
        "accuracy of 20 nearest neighbours, %, epoch 15": ["", "60.5"],
        "sky": ["10.0", "12.3", "2"],
        "&lt;sea&gt;": ["", "", ""],
        "--num-prototypes": ["16"],
        "--geometric": ["yes"],
        "--base-lr": ["0.3"],
        "versions": ["torch 2.9, timm 1"],
        "grouping loss": ["4.000"],
        "started": ["noon"],
    }
    found = rows(page)
    assert {key: found[key] for key in expected} == expected
    assert "--probe" not in found
    for raw in ("None", "null", "miou", "num_prototypes", "group_loss", "0.30000", "nan"):
        assert raw not in re.sub('base64,[^"]*', "", page)
    (short,) = re.findall(f'title="{data}">([^<]*)', page)
    assert len(short) < 70
    assert short.startswith("/scratch/deep")
    assert short.endswith("deep/images")
    assert page.index("Groups after epoch 1") < page.index("Groups at the end")
    assert page.index("Resumed at step 5") < page.index(">/a<") < page.index("Resumed at step 9")
    assert len(images(page)) == 3
    assert all(content.startswith(PNG) for content in images(page))
    assert "http" not in page
    (run / "summary.json").write_text(json.dumps({**summary, "before": None, "after": after}))
    assert rows(write_page(run).read_text())["held-out mIoU, %"] == ["25.0"], "no column of what was not measured"


def test_the_command_says_what_is_wrong(run, tmp_path):
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "training.report", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = call(run)
    assert (done.returncode, done.stdout.strip()) == (0, str(run / "report.html"))
    done = call(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path} is no folder of a run")
    assert done.stderr.count("\n") == 1
    assert call().returncode == 2


def test_a_run_without_a_line_is_no_page(run):
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no line yet"):
        write_page(run)

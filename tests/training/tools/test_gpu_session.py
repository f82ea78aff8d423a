"""The session on a CPU: what needs no GPU runs, is resumed and is written down."""

import json
import sys

from training.tools import gpu_session
from training.tools.gpu_session import Part, main

PARTS = ("tests", "train", "train-killed", "resume", "knn")


def test_a_session_runs_its_parts_once_and_writes_them_down(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    main(tmp_path, minutes=0)  # over before it begins
    assert "not ended well: tests, step-bf16" in capsys.readouterr().out
    main(tmp_path, only=PARTS)
    session = json.loads((tmp_path / "session.json").read_text())
    ran = {name: part for name, part in session["parts"].items() if part}
    assert set(ran) == set(PARTS)
    assert all(part["ok"] for part in ran.values()), {n: p["output"][-500:] for n, p in ran.items() if not p["ok"]}
    assert ran["train"]["values"]["step"] == ran["resume"]["values"]["step"] > ran["train-killed"]["values"]["step"]
    assert ran["train"]["values"]["loss"] == ran["resume"]["values"]["loss"]  # on a CPU, bit for bit
    times = {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in PARTS}
    main(tmp_path, only=PARTS)
    assert times == {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in PARTS}
    table = (tmp_path / "session.md").read_text()
    assert "| resume | yes |" in table
    assert "| loader | not run |" in table


def test_a_part_that_fails_or_hangs_is_told_and_tried_again(tmp_path, monkeypatch):
    python = sys.executable
    parts = [
        Part("fails", (python, "-c", "raise SystemExit(3)"), 20),
        Part("hangs", (python, "-c", "import time; time.sleep(60)"), 1),
        Part("unread", (python, "-c", "pass"), 20, read=lambda: {"x": (tmp_path / "x").read_text()}),
    ]
    monkeypatch.setattr(gpu_session, "parts", lambda folder: iter(parts))
    for _ in range(2):
        main(tmp_path)
    found = json.loads((tmp_path / "session.json").read_text())["parts"]
    assert [(part["ok"], part["code"]) for part in found.values()] == [(False, 3), (False, -9), (False, 0)]
    assert "No such file" in found["unread"]["problem"]


def test_the_table_of_steps(tmp_path, monkeypatch):
    row = {"K": 256, "batch": 128, "ms": 90.4, "images_per_second": 1416.0, "coco_epoch_seconds": 83.5}
    result = tmp_path / "result.json"
    result.write_text(json.dumps([row | {"rate_share": 0.41, "gb": 8.25}]))
    part = Part("step", (sys.executable, "-c", "pass"), 20, read=lambda: gpu_session._rows(result))
    monkeypatch.setattr(gpu_session, "parts", lambda folder: iter([part]))
    main(tmp_path)
    assert "| step | 256 | 128 | 90 | 1416 | 84 | 41% | 8.2 |" in (tmp_path / "session.md").read_text()

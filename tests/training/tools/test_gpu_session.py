"""The session on a CPU: what needs no GPU runs, is resumed and is written down."""

import json
import sys
import time

import pytest

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


def test_a_part_that_starts_anew_removes_what_it_has_left_and_nothing_else(tmp_path, monkeypatch):
    """A run that was stopped would refuse its folder, and an old checkpoint would seem to be a new one."""
    for place in ("run/whole", "run/killed/checkpoints/step-00000005", "run/mine"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "run.json").touch()
    found = {part.name: part for part in gpu_session.parts(tmp_path)}
    began = [found[name] for name in ("train", "train-killed")]
    assert [part.new for part in began] == [tmp_path / "run/whole", tmp_path / "run/killed"]
    assert all(part.new is None and not part.killed for part in found.values() if part not in began)
    writes = "import pathlib, sys, time; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True); time.sleep(60)"
    parts = [
        Part("train", (sys.executable, "-c", writes, str(began[0].new)), 2, began[0].new),
        Part(
            "killed",
            (sys.executable, "-c", writes, str(began[1].new / "checkpoints/step-1")),
            20,
            began[1].new,
            True,
        ),
    ]
    monkeypatch.setattr(gpu_session, "parts", lambda folder: iter(parts))
    main(tmp_path)
    session = json.loads((tmp_path / "session.json").read_text())["parts"]
    assert [(part["ok"], part["code"]) for part in session.values()] == [(False, -9), (True, -9)]
    assert not list((tmp_path / "run/whole").iterdir())
    assert [path.name for path in (tmp_path / "run/killed/checkpoints").iterdir()] == ["step-1"]
    assert (tmp_path / "run/mine/run.json").is_file()


def test_ctrl_c_ends_the_running_part_too(tmp_path, monkeypatch):
    writes = (
        "import pathlib, time; p = pathlib.Path('{}')\nwhile True: p.write_text(str(time.time())); time.sleep(0.02)"
    )
    beat = tmp_path / "beat"
    part = Part("train", (sys.executable, "-c", writes.format(beat)), 20)
    monkeypatch.setattr(gpu_session, "parts", lambda folder: iter([part]))

    def interrupt(seconds):
        if beat.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(gpu_session.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(tmp_path)
    monkeypatch.undo()
    last = beat.read_bytes()
    time.sleep(0.3)
    assert beat.read_bytes() == last


def test_the_table_of_steps(tmp_path, monkeypatch):
    row = {"K": 256, "batch": 128, "ms": 90.4, "images_per_second": 1416.0, "coco_epoch_seconds": 83.5}
    result = tmp_path / "result.json"
    result.write_text(json.dumps([row | {"rate_share": 0.41, "gb": 8.25}]))
    part = Part("step", (sys.executable, "-c", "pass"), 20, read=lambda: gpu_session._rows(result))
    monkeypatch.setattr(gpu_session, "parts", lambda folder: iter([part]))
    main(tmp_path)
    assert "| step | 256 | 128 | 90 | 1416 | 84 | 41% | 8.2 |" in (tmp_path / "session.md").read_text()

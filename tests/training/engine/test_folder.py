"""The folder of a run belongs to one run."""

import fcntl
import json
import multiprocessing
import os
from datetime import datetime
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from runs import TINY

from training.engine import folder as run_folder
from training.engine import outputs
from training.engine.outputs import unwritable
from training.pretraining.recipes import Recipe
from training.tools.reliability.launch import Launch


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    PartialState(cpu=True)


class Noon(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, 12)


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "datetime", Noon)
    chosen = [run_folder.choose("demo", Recipe()) for _ in range(3)]  # before any is made
    made = [run_folder.create(folder, named=False) for folder in chosen]
    assert [path.name for path in made] == [
        "demo-20260101-120000",
        "demo-20260101-120000-2",
        "demo-20260101-120000-3",
    ]
    assert all((path / "lock").is_file() for path in made)


def race(start, folder, results) -> None:
    PartialState(cpu=True)
    start.wait()
    try:
        results.put(str(run_folder.create(Path(folder), named=True)))
        start.wait()  # alive until all have tried
    except ValueError as error:
        results.put(str(error))
        start.wait()


def test_of_runs_that_begin_at_once_one_gets_the_named_folder(tmp_path):
    context = multiprocessing.get_context("forkserver")
    start, results = context.Barrier(4), context.Queue()
    runs = [context.Process(target=race, args=(start, tmp_path / "new", results)) for _ in range(4)]
    for run in runs:
        run.start()
    said = sorted(results.get(timeout=120) for _ in runs)
    for run in runs:
        run.join()
    assert said[0] == str(tmp_path / "new")
    assert (
        said[1:]
        == [f"{tmp_path}/new holds a run already: add --resume to continue it, or choose another --output"] * 3
    )


def test_two_whole_runs_with_one_new_output(images, tmp_path):
    argv = ["demo", "--data", images, *TINY.split(), "--show-every", "0", "--output", tmp_path / "run"]
    runs = [Launch([*argv, "--seed", seed], tmp_path / f"log-{seed}") for seed in (4, 5)]
    codes = [run.end() for run in runs]
    assert sorted(codes) == [[0], [1]]
    seed = 4 + codes.index([0])
    assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["seed"] == seed
    assert "run holds a run already" in (tmp_path / f"log-{9 - seed}").read_text()


def hold(folder, ready, end) -> None:
    with open(f"{folder}/lock", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        ready.set()
        end.wait()


def test_a_locked_run_says_how_long_it_waits(tmp_path, capsys):
    context = multiprocessing.get_context("forkserver")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, end))
    other.start()
    ready.wait()
    with pytest.raises(ValueError, match=r"is still training in .*, after 1 seconds: stop it first, or choose"):
        run_folder.lock(tmp_path, patience=1)
    end.set()
    other.join()
    assert f"waiting up to 1 seconds for the process that is training in {tmp_path}" in capsys.readouterr().err


def test_folders_above_an_output_are_made_unless_something_prevents_it(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert unwritable(tmp_path / "a/b/c", "--output") is None
    assert unwritable(tmp_path / "file", "--output") is None
    assert unwritable(tmp_path / "a/b/c", "--output", new=True) is None
    assert unwritable(tmp_path, "--figures", new=True) == f"{tmp_path} exists: choose another --figures"
    words = unwritable(tmp_path / "file/b", "--output")
    assert (
        words == f"{tmp_path}/file is a file, so {tmp_path}/file/b cannot be created in it: choose another --output"
    )
    monkeypatch.setattr(outputs.os, "access", lambda *_: False)
    assert ": choose another --figures" in str(unwritable(tmp_path / "a/b", "--figures"))


def test_a_run_makes_the_folders_above_its_own(run, images, tmp_path):
    folder = run(
        "demo", "--data", images, *TINY.split(), "--epochs", 1, "--warmup-epochs", 0, "--output", tmp_path / "a/b"
    )
    assert (folder / "run.json").is_file()
    assert any((folder / "slotcon").glob("events.out.tfevents.*"))
    assert os.listdir(tmp_path / "a") == ["b"]

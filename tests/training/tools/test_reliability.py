"""Runs that are killed, stopped, moved to other numbers of processes, and shown bad images; all of it real."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.engine.folder import lock
from training.tools.reliability import __main__
from training.tools.reliability.bad_images import ODD, UNREADABLE, train_on_bad_images
from training.tools.reliability.kills import MOMENTS, differences, kill_runs
from training.tools.reliability.launch import TINY, Launch, images

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    data = images(tmp_path_factory.mktemp("data") / "images")
    return [*TINY.split(), "--data", str(data)]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """The run that nobody disturbs, on so many processes."""
    made = {}

    def of(processes):
        if processes not in made:
            made[processes] = folder = tmp_path_factory.mktemp("whole") / "run"
            launch = Launch([*options, "--workers", 0, "--output", folder], folder.with_suffix(".log"), processes)
            assert not any(launch.end()), launch.log.read_text()
            assert json.loads((folder / "run.json").read_text())["processes"] == processes
        return made[processes]

    return of


def losses(folder):
    return {
        line["step"]: line["loss"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    }


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def wait_for_a_line(launch, folder):
    while launch.running() and not (folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    assert launch.running(), launch.log.read_text()


@pytest.mark.parametrize(
    ("processes", "workers", "moments"),
    [(1, 1, list(MOMENTS)), (2, 0, ["in a save", "in a step"])],
    ids=["one process", "two processes"],
)
def test_killed_at_any_moment(options, whole, tmp_path, processes, workers, moments):
    argv = [*options, "--workers", workers]
    result = kill_runs(argv, whole(processes), tmp_path, moments, processes=processes)
    assert result.lost == []
    assert result.kills.total() == len(moments)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_many_times(options, whole, tmp_path, processes, workers):
    argv = [*options, "--workers", workers]
    result = kill_runs(argv, whole(processes), tmp_path, [*MOMENTS] * 5, processes=processes, seed=workers)
    assert result.lost == []
    assert result.half_saves > 0


@pytest.mark.slow
def test_killed_on_more_than_two_processes(options, whole, tmp_path):
    """Where the order of sums over processes shows."""
    result = kill_runs([*options, "--workers", 0], whole(4), tmp_path, ["in a save", "in a step"], processes=4)
    assert result.lost == []


@pytest.mark.parametrize(
    ("processes", "ranks"), [(1, []), (2, [1])], ids=["one and its worker", "the second of two alone"]
)
def test_sigterm_saves_and_ends_every_process(options, whole, tmp_path, processes, ranks):
    """Then the run goes on: exactly on as many processes, nearly on another number of them."""
    run, other = tmp_path / "run", tmp_path / "other"
    argv = [*options, "--workers", 1, "--resume", "--output"]
    stopped = Launch([*argv, run], tmp_path / "stopped.log", processes)
    wait_for_a_line(stopped, run)
    stopped.signal(signal.SIGTERM, *ranks)
    assert stopped.end() == [0] * processes
    said = stopped.log.read_text()
    assert f"--output {run} --resume continues from there" in said
    assert "Traceback" not in said
    step = int(checkpoints(run)[-1].removeprefix("step-"))
    assert f"stopped at step {step} of 12, and saved" in said
    assert max(losses(run)) == step
    shutil.copytree(run, other)

    if processes > 1:  # all of them turn to the checkpoint before a damaged one
        (run / "checkpoints" / f"step-{step + 1:08d}").mkdir()
    again = Launch([*argv, run], tmp_path / "again.log", processes)
    assert not any(again.end()), again.log.read_text()
    assert differences(whole(processes), run) == []
    assert ("SHA256SUMS is missing" in again.log.read_text()) == (processes > 1)

    moved = Launch([*argv, other], tmp_path / "moved.log", 3 - processes)
    assert not any(moved.end()), moved.log.read_text()
    assert f"processes={3 - processes} instead of {processes}" in moved.log.read_text()
    assert "metrics.jsonl" in differences(whole(processes), other)
    exact = losses(whole(processes))
    assert {s: v for s, v in losses(other).items() if s <= step} == {s: v for s, v in exact.items() if s <= step}
    assert losses(other) == pytest.approx(exact, rel=0.1)


def test_two_processes_of_the_launcher_which_passes_sigterm_on(options, whole, tmp_path):
    run = tmp_path / "run"
    accelerate = [str(Path(sys.executable).parent / "accelerate"), "launch", "--main_process_port", "0"]
    several = ["--multi_gpu", "--num_processes", "2", "training/pretrain.py"]
    command = [*accelerate, *several, *options, "--workers", "1", "--output", str(run)]
    env = {**os.environ, "HF_HOME": os.devnull, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w+") as log:
        launcher = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        while launcher.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(120)
    said = (tmp_path / "log").read_text()
    assert "and saved" in said, said
    assert f'File "{ROOT}/' not in said  # the traceback is the launcher's own
    assert "forcefully" not in said
    facts = json.loads((run / "run.json").read_text())
    assert (facts["processes"], facts["micro_batch"]) == (2, 4)  # they really are two
    again = Launch([*options, "--workers", 0, "--output", run, "--resume"], tmp_path / "again.log", 2)
    assert not any(again.end()), again.log.read_text()
    assert differences(whole(2), run) == []


def test_a_run_is_kept_from_others_until_it_ends_however_it_ends(options, tmp_path):
    run = tmp_path / "run"
    argv = [*options, "--epochs", 100, "--workers", 1, "--output", run]  # longer than any wait
    launch = Launch(argv, tmp_path / "log")
    wait_for_a_line(launch, run)
    with pytest.raises(ValueError, match=r"still training in .*run, after 1 seconds: stop it first"):
        lock(run, patience=1)
    os.kill(launch.ranks[0].pid, signal.SIGKILL)  # its worker lives on for a while
    launch.ranks[0].join()
    lock(run, patience=0)


def test_the_lock_of_a_machine_that_is_gone_is_waited_for(tmp_path, monkeypatch):
    """A server of files keeps it for 90 seconds or so."""
    waited, held = [], iter([True] * 100)

    def lock_of_another(*_):
        if next(held, False):
            raise BlockingIOError

    monkeypatch.setattr(fcntl, "lockf", lock_of_another)
    monkeypatch.setattr(time, "sleep", waited.append)
    lock(tmp_path)
    assert sum(waited) == 100


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    lock(tmp_path)
    assert "cannot be locked (No locks available): make sure that no other process" in capsys.readouterr().err


def test_bad_images_are_named_and_odd_ones_are_taken(tmp_path):
    tried, wrong = train_on_bad_images(tmp_path)
    assert wrong == []
    assert tried == len(UNREADABLE) + len(ODD)


def test_a_run_that_fails_ends_although_its_workers_wait(options, tmp_path):
    data = images(tmp_path / "images")
    for name in ("bad.jpg", "worse.jpg"):
        (data / name).write_bytes(b"")
    launch = Launch([*options, "--data", data, "--workers", 1, "--output", tmp_path / "run"], tmp_path / "log")
    assert launch.end(60) == [1]
    assert "error: 2 of 34 images cannot be read" in launch.log.read_text()


def test_a_run_that_fails_undisturbed_is_one_sentence(monkeypatch):
    monkeypatch.setattr(__main__, "TINY", f"{TINY} --backbone nonsense")
    with pytest.raises(SystemExit, match=r"the undisturbed run failed: see the end of") as stop:
        __main__.main(kills=1)
    log = Path(str(stop.value).rpartition(" ")[2])
    assert "timm cannot make" in log.read_text()
    shutil.rmtree(log.parents[1])

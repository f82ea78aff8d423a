"""Checkpoints on a real disk: whole or not at all, verified, rotated, and read without running code in them."""

import json
import resource
import shutil
import subprocess

import pytest
import torch
from torch import nn

from training.engine import checkpoint
from training.engine.errors import explain_lost_workers

FILES = ["model.safetensors", "optimizer.pt", "state.json", "SHA256SUMS"]


def save(folder, step, model, keep=2, **keeping):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    states = {"optimizer": optimizer.state_dict(), "scaler": {}}
    return checkpoint.save(folder, step, model, states, {"taken": step}, keep=keep, **keeping), states


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def name(step):
    return f"step-{step:08d}"


def test_round_trip_and_rotation(tmp_path):
    model = nn.Linear(3, 2)
    for step in (5, 10, 15):
        path, states = save(tmp_path, step, model)
    assert names(tmp_path) == [name(10), name(15)]
    assert checkpoint.newest(tmp_path) == (path, [])
    other = nn.Linear(3, 2)
    loaded, progress = checkpoint.load(path, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert progress == {"step": 15, "taken": 15}
    buffer = states["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum_buffer"], buffer)


def test_some_are_kept_for_good(tmp_path):
    for step in (5, 10, 12, 15, 20, 25, 30):
        save(tmp_path, step, nn.Linear(3, 2), keep=2, keep_every=10)
    assert names(tmp_path) == [name(10), name(20), name(25), name(30)]


def test_the_manifest_is_that_of_sha256sum(tmp_path):
    path, _ = save(tmp_path, 5, nn.Linear(3, 2))
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("needs sha256sum")
    assert subprocess.run([tool, "--check", "--strict", "SHA256SUMS"], cwd=path, check=False).returncode == 0


def test_a_crash_in_the_middle_leaves_those_before(tmp_path, monkeypatch):
    model = nn.Linear(3, 2)
    save(tmp_path, 5, model)
    before, _ = save(tmp_path, 10, model)
    monkeypatch.setattr(json, "dumps", lambda *a, **k: 1 / 0)  # as a kill would: nobody tidies up
    with pytest.raises(ZeroDivisionError):
        save(tmp_path, 15, model)
    assert names(tmp_path) == ["." + name(15), name(5), name(10)]
    assert checkpoint.newest(tmp_path) == (before, [])
    monkeypatch.undo()
    (tmp_path / "checkpoints" / f".{name(5)}-old").mkdir()  # nor after a kill in the middle of a removal
    after, _ = save(tmp_path, 20, model)
    assert checkpoint.newest(tmp_path) == (after, [])
    assert names(tmp_path) == [name(10), name(20)]


def test_a_full_disk_is_one_sentence_and_the_one_before_stays(tmp_path):
    before, _ = save(tmp_path, 5, nn.Linear(3, 2), keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for file in ("model.safetensors", "optimizer.pt"):
        limit = (before / file).stat().st_size - 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(
                OSError, match=r"step-00000010 could not be written \(.+\): free disk space"
            ) as raised:
                save(tmp_path, 10, nn.Linear(3, 2), keep=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(raised.value)
        assert names(tmp_path) == [name(5)]
        assert checkpoint.newest(tmp_path) == (before, [])


def test_nothing_to_resume_from(tmp_path):
    assert checkpoint.newest(tmp_path) == (None, [])


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def remove(file):
    file.unlink()


def garble(file):
    file.write_bytes(b"\xff{")


def tamper(file):
    """Change what still reads well."""
    file.write_bytes(file.read_bytes().replace(b"10", b"11"))


DAMAGE = [(file, how) for file in FILES for how in (cut, flip, remove, garble)] + [("state.json", tamper)]


@pytest.mark.parametrize(("file", "how"), DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_is_taken(tmp_path, file, how):
    model = nn.Linear(3, 2)
    before, _ = save(tmp_path, 5, model)
    newest, _ = save(tmp_path, 10, model)
    how(newest / file)
    path, (problem,) = checkpoint.newest(tmp_path)
    assert path == before
    assert problem.startswith(f"the checkpoint {newest} is damaged: ")
    assert file in problem
    assert "\n" not in problem


def test_when_all_are_damaged_nothing_is_removed(tmp_path):
    for step in (5, 10):
        cut(save(tmp_path, step, nn.Linear(3, 2))[0] / "optimizer.pt")
    with pytest.raises(
        ValueError, match=r"step-00000010 is damaged: optimizer.pt does .*step-00000005 is .*start a new run"
    ):
        checkpoint.newest(tmp_path)
    assert names(tmp_path) == [name(5), name(10)]


def test_a_damaged_newer_one_counts_for_nothing(tmp_path):
    """The run went back to 5: what it writes next is not taken for older than the damaged 20."""
    model = nn.Linear(3, 2)
    save(tmp_path, 5, model, keep=1)
    cut(save(tmp_path, 20, model, keep=2)[0] / "state.json")
    for step in (10, 15):
        path, _ = save(tmp_path, step, model, keep=1)
        assert checkpoint.newest(tmp_path)[0] == path
    path, _ = save(tmp_path, 20, model, keep=1)
    assert checkpoint.newest(tmp_path) == (path, [])
    assert names(tmp_path) == [name(20)]


def test_folders_of_other_names_are_left_alone(tmp_path):
    kept = tmp_path / "checkpoints" / "step-00000005-mine"
    kept.mkdir(parents=True)
    path, _ = save(tmp_path, 10, nn.Linear(3, 2), keep=1)
    assert checkpoint.newest(tmp_path) == (path, [])
    assert kept.is_dir()


def test_another_shape_is_refused(tmp_path):
    path, _ = save(tmp_path, 5, nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"is of another model \(size mismatch for weight.*resume with the recipe"):
        checkpoint.load(path, nn.Linear(3, 4))


@pytest.mark.parametrize("file", FILES[:3])
def test_a_machine_that_cannot_see_it_is_told_to_share_the_folder(tmp_path, file):
    path, _ = save(tmp_path, 5, nn.Linear(3, 2))
    remove(path / file)  # as another machine sees it, the main process has verified it
    words = r"step-00000005 cannot be read here \(.+\): all machines must share --output"
    with pytest.raises(ValueError, match=words) as raised:
        checkpoint.load(path, nn.Linear(3, 2))
    assert "\n" not in str(raised.value)
    assert "remove" not in str(raised.value)


def test_no_code_is_run(tmp_path):
    path, _ = save(tmp_path, 5, nn.Linear(3, 2))
    torch.save({"optimizer": Malicious(tmp_path / "marker")}, path / "optimizer.pt")
    with pytest.raises(ValueError, match=r"cannot be read \(.+\), though its SHA-256 is right: resume with the"):
        checkpoint.load(path, nn.Linear(3, 2))
    assert not (tmp_path / "marker").exists()


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_a_worker_that_is_killed_during_a_save_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    before, _ = save(tmp_path, 5, nn.Linear(3, 2))

    def killed(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")  # torch does so anywhere

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with (
        pytest.raises(
            OSError, match=r"^a worker that loads images was killed .*by signal: Killed\).*: start again$"
        ),
        explain_lost_workers("start again"),
    ):
        save(tmp_path, 10, nn.Linear(3, 2))
    assert names(tmp_path) == [before.name]
    with pytest.raises(RuntimeError, match="another"), explain_lost_workers("start again"):
        raise RuntimeError("another")

import json

import pytest
import torch
from torch import nn

from training import checkpoint


def save(folder, step, model, keep=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    states = {"optimizer": optimizer.state_dict(), "scaler": {}}
    return checkpoint.save(folder, step, model, states, {"taken": step}, keep), states


def test_round_trip_and_rotation(tmp_path):
    model = nn.Linear(3, 2)
    for step in (5, 10, 15):
        path, states = save(tmp_path, step, model)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000010", "step-00000015"]
    assert checkpoint.latest(tmp_path) == path
    other = nn.Linear(3, 2)
    loaded, progress = checkpoint.load(path, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert progress == {"step": 15, "taken": 15}
    buffer = states["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum_buffer"], buffer)


def test_a_crash_in_the_middle_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    model = nn.Linear(3, 2)
    before, _ = save(tmp_path, 5, model)
    monkeypatch.setattr(json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path, 10, model)
    assert checkpoint.latest(tmp_path) == before
    monkeypatch.undo()
    assert checkpoint.load(before, model)[1]["step"] == 5
    after, _ = save(tmp_path, 10, model)  # and what it left behind is in nobody's way
    assert checkpoint.latest(tmp_path) == after


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint to resume from: start the run without --resume"):
        checkpoint.latest(tmp_path)


def test_another_shape_is_refused(tmp_path):
    path, _ = save(tmp_path, 5, nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"is of another model \(size mismatch for weight.*resume with the recipe"):
        checkpoint.load(path, nn.Linear(3, 4))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    path, _ = save(tmp_path, 5, nn.Linear(3, 2))
    (path / name).write_bytes((path / name).read_bytes()[:20])
    with pytest.raises(ValueError, match="step-00000005 is damaged"):
        checkpoint.load(path, nn.Linear(3, 2))


def test_no_code_is_run(tmp_path):
    path, _ = save(tmp_path, 5, nn.Linear(3, 2))
    torch.save({"optimizer": Malicious(tmp_path / "marker")}, path / "optimizer.pt")
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load(path, nn.Linear(3, 2))
    assert not (tmp_path / "marker").exists()


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))

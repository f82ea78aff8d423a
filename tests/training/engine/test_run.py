"""The engine trains anything: a linear classifier is killed, and resumes bit for bit, on one and two processes."""

import gc
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.engine.cli import cli
from training.engine.run import Run, Schedule
from training.engine.settings import RunSettings
from training.tools.reliability.kills import differences
from training.tools.reliability.launch import Launch


@dataclass(frozen=True)
class Toy(RunSettings):
    base_lr: float = 0.1
    kill_at: int = 0
    RESUMABLE = RunSettings.RESUMABLE | {"kill_at"}


def batches(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """Two classes that a line divides; micro-batches of this process, from the next step on."""
    process, processes = run.accelerator.process_index, run.accelerator.num_processes
    for step in range(run.step, 40):
        for micro in range(run.settings.accumulation_steps):
            rng = np.random.default_rng([step, micro, process])
            x = rng.normal(size=(run.settings.micro_batch(processes), 4)).astype(np.float32)
            yield torch.from_numpy(x), torch.from_numpy((x.sum(1) > 0).astype(np.int64))


def train(argv: list[str]) -> None:
    settings = cli(Toy, args=argv)
    run = Run("toy", settings)
    run.find_checkpoint()
    torch.manual_seed(settings.seed)
    model = nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    run.attach(model, optimizer, Schedule(total_steps=40, save_every=10), identity={"classes": 2})
    run.open("toys")
    with run.training():
        run.warm_up_ddp(lambda: run.accelerator.backward(run.model(torch.randn(4, 4)).sum()))
        for step in run.steps(batches(run)):
            step.set_lr(settings.base_lr * (1 - run.updates / 40))
            for x, y in step.micro_batches():
                logits = run.model(x)
                loss = nn.functional.cross_entropy(logits, y)
                step.backward(loss, {"loss": loss, "accuracy": (logits.argmax(1) == y).float().mean()})
            step.update()
            if step.number == settings.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def train_and_watch(argv: list[str]) -> None:
    """Train, and note how many DDP modules there are when the process group is destroyed."""
    destroy = dist.destroy_process_group

    def watched(group: Any = None) -> None:
        print("DDP modules:", sum(isinstance(x, nn.parallel.DistributedDataParallel) for x in gc.get_objects()))
        destroy(group)

    dist.destroy_process_group = watched
    train(argv)


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_of_anything_resumes_bit_for_bit(tmp_path, processes):
    options = ["--batch-size", 8, "--accumulation-steps", 2, "--threads", 1, "--log-every", 5, "--keep", 9]
    options += ["--trackers"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    launched = Launch([*options, "--output", whole], tmp_path / "log", processes, main=train)
    killed = Launch([*options, "--output", part, "--kill-at", 27], tmp_path / "log-killed", processes, main=train)
    assert not any(launched.end()), launched.log.read_text()
    assert "CPU threads" in launched.log.read_text()
    assert "convolutions" not in launched.log.read_text(), "TF32 and cuDNN are facts of a GPU"
    assert set(killed.end()) == {-signal.SIGKILL}, killed.log.read_text()
    assert [path.name for path in sorted((part / "checkpoints").iterdir())] == ["step-00000010", "step-00000020"]
    resumed = Launch([*options, "--output", part, "--resume"], tmp_path / "log-resumed", processes, main=train)
    assert not any(resumed.end()), resumed.log.read_text()
    assert "resumes from step-00000020" in resumed.log.read_text()
    assert differences(whole, part) == []
    first, last = (json.loads(lines(whole)[place]) for place in (0, -1))
    assert (first["step"], last["step"], len(lines(whole))) == (5, 40, 8)
    assert last["loss"] < first["loss"]


def test_ddp_is_released_before_the_process_group(tmp_path):
    options = ["--batch-size", 4, "--threads", 1, "--output", tmp_path / "run", "--trackers"]
    launched = Launch(options, tmp_path / "log", 2, main=train_and_watch)
    assert not any(launched.end()), launched.log.read_text()
    assert re.findall(r"DDP modules: (\d)", launched.log.read_text()) == ["0", "0"]


def test_what_differs_is_refused_in_a_sentence(tmp_path):
    options = ["--batch-size", 8, "--threads", 1, "--output", tmp_path / "run", "--trackers"]
    assert not any(Launch(options, tmp_path / "log", main=train).end())
    for changed, words in (
        (["--batch-size", 4], "this run has batch_size=8, not 4: resume it with the recipe and options it has"),
        (["--base-lr", 1], "this run has base_lr=0.1, not 1.0"),
    ):
        again = Launch([*options, *changed, "--resume"], tmp_path / "log-2", main=train)
        assert again.end() == [1]
        assert words in again.log.read_text()

"""The processes of a run: how they are initialised, and how their metrics are gathered."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import output
from torch.distributed.distributed_c10d import _get_default_group

from training.engine import processes
from training.engine.metrics import Monitor
from training.pretraining import recipes as pretraining
from training.pretraining.diagnostics import metrics
from training.pretraining.recipes import parse
from training.tools.reliability.launch import TINY, Launch
from training.transfer.mask_rcnn import recipes as mask_rcnn
from training.transfer.semantic import recipes as semantic


def measure(argv: list[str]) -> None:
    """Initialise, and write a line of metrics for which the second process has waited."""
    folder, *words = argv
    _, recipe = parse(words)
    processes.init_distributed(recipe)
    accelerator = processes.make_accelerator(recipe, Path(folder))
    assert _get_default_group()._get_backend(torch.device("cpu")).options._timeout == timedelta(hours=2)
    rank = accelerator.process_index
    accelerator.wait_for_everyone()
    monitor = Monitor(Path(folder), accelerator, range(1), batch_size=4, log_every=1)
    with monitor.waiting():
        time.sleep(0.5 * rank)
    monitor.add(metrics(output(loss=2.0 + rank)), 1)
    monitor.step(1, {}, saving=False)


def test_processes_wait_for_the_main_one_and_show_who_waits_for_images(tmp_path):
    launch = Launch([tmp_path, *TINY.split(), "--data", tmp_path], tmp_path / "log", processes=2, main=measure)
    assert launch.end() == [0, 0], launch.log.read_text()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["loss"] == 2.5
    assert line["data_wait"] > 0.3
    assert "of the time goes into waiting for images" in (tmp_path / "warnings.txt").read_text()


@pytest.mark.parametrize(
    ("recipe", "fixed"),
    [(pretraining.RECIPES["demo"][1], True), (semantic.VOC, True), (mask_rcnn.COCO_1X, False)],
)
def test_cudnn_measures_its_algorithms_for_inputs_of_one_size(recipe, fixed, monkeypatch):
    gpu = SimpleNamespace(device=torch.device("cuda"), num_processes=1)
    monkeypatch.setattr(processes, "PartialState", lambda **_: gpu)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not fixed)
    processes.init_distributed(recipe)
    assert torch.backends.cudnn.benchmark == fixed
    with processes.any_size():
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == fixed


@pytest.mark.parametrize("variable", processes.DIVIDING)
def test_a_model_is_not_divided_over_processes(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    _, recipe = parse([*TINY.split(), "--data", os.devnull])
    with pytest.raises(ValueError, match="but every process must have the whole model: launch with --multi_gpu"):
        processes.init_distributed(recipe)

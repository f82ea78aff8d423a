"""Lines of metrics, and warnings when a run goes wrong; with the metrics of pre-training."""

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny import output

from training.engine.metrics import Diverged, Monitor
from training.pretraining.diagnostics import SHOWN, diagnose, metrics


@pytest.fixture
def monitor(tmp_path: Path) -> Monitor:
    return Monitor(tmp_path, Accelerator(cpu=True), range(0, 100), 4, 2, diagnose=diagnose, shown=SHOWN)


def read(monitor: Monitor) -> list[dict]:
    return [json.loads(line) for line in monitor.path.read_text().splitlines()]


def test_a_line_holds_means_and_what_the_machine_does(monitor):
    weights = [
        torch.nn.Parameter(torch.zeros(3)),
        torch.nn.Parameter(torch.zeros(2, 2)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    for step, gradient in ((1, 1.0), (2, 3.0)):
        for weight in weights[:2]:
            weight.grad = torch.full_like(weight, gradient)
        monitor.add(metrics(output(loss=float(step))), step)
        monitor.add_gradients(weights, step)
        monitor.step(step, {"lr": 0.5}, saving=False)
    (line,) = read(monitor)
    assert line["loss"] == 1.5
    assert line["grad_norm"] == pytest.approx(2 * math.sqrt(7))
    assert line["lr"] == 0.5
    assert (line["dead_slots"], line["active_slots"]) == (1, 3.0)
    assert 0.1 < line["memory_gb"] < 100
    assert 0 <= line["data_wait"] < 1


@pytest.mark.parametrize(("part", "named"), [("group_loss", "group_loss"), ("slot_loss", "slot_loss")])
def test_a_loss_that_is_no_number_is_named_with_its_step(monitor, part, named):
    monitor.add(metrics(output()), 1)
    monitor.step(1, {}, saving=False)
    monitor.add(metrics(output(**{"loss": math.nan, part: math.nan})), 2)
    with pytest.raises(Diverged, match=f"step 2 gave a loss that is NaN or infinite, in {named}:"):
        monitor.step(2, {}, saving=False)
    assert not monitor.path.exists()


def test_the_first_step_is_blamed(monitor):
    monitor.add(metrics(output(loss=math.inf, slot_loss=math.inf)), 1)
    monitor.step(1, {}, saving=False)
    monitor.add(metrics(output(loss=math.nan, group_loss=math.nan)), 2)
    with pytest.raises(Diverged, match=r"step 1 gave .*, in slot_loss:"):
        monitor.step(2, {}, saving=False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_no_numbers_are_named_with_their_step(monitor, value):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, value])
    for step in (1, 2):
        monitor.add(metrics(output(loss=2.0 if step == 1 else math.nan)), step)  # as they come the step after
        monitor.add_gradients([weight], step)
        if step == 1:
            monitor.step(step, {}, saving=False)
    with pytest.raises(Diverged, match="step 1 gave gradients that are NaN or infinite: lower"):
        monitor.step(2, {}, saving=False)
    assert not monitor.path.exists()


def test_with_a_scaler_such_a_step_is_left_out(monitor, monkeypatch):
    monkeypatch.setattr(monitor.accelerator, "scaler", object())
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, math.inf])
    monitor.add(metrics(output()), 1)
    monitor.add_gradients([weight], 1)
    monitor.step(1, {}, saving=True)
    assert "grad_norm" not in read(monitor)[0]


def test_what_goes_wrong_is_said_once(monitor, capsys):
    for step in range(1, 9):
        single = step <= 4 or step > 6  # wrong, well, wrong again
        out = output(active_slots=1.0 if single else 3.0)
        out.usage = torch.tensor([100, 1, 0, 0]) if single else torch.tensor([3, 3, 3, 3])
        monitor.add(metrics(out), step)
        monitor.step(step, {}, saving=False)
    said = (monitor.path.with_name("warnings.txt")).read_text().splitlines()
    collapsed = [line for line in said if "prototype 0 has 99% of all usage" in line]
    assert [line.split(":")[0] for line in collapsed] == ["step 2", "step 8"]
    assert sum("every image is a single group" in line for line in said) == 2
    assert not any("waiting" in line for line in said)
    assert "warning: step 2: prototype 0" in capsys.readouterr().out.replace("\n", " ")


def test_starvation_is_said(monitor, monkeypatch):
    clock = iter(float(i) for i in range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monitor._reset()
    for step in (1, 2):
        with monitor.waiting():
            pass
        monitor.add(metrics(output()), step)
        monitor.step(step, {}, saving=False)
    assert "waiting for images: raise --workers" in monitor.path.with_name("warnings.txt").read_text()


def test_pauses_are_not_training(monitor, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monitor._reset()
    for step in (1, 2):
        now[0] += 1.0
        with monitor.pausing():
            now[0] += 50.0
        monitor.add(metrics(output()), step)
        monitor.step(step, {}, saving=False)
    assert read(monitor)[0]["images_per_second"] == pytest.approx(2 * 4 / 2.0)

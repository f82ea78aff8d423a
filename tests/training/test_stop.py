"""Signals that ask a run to stop, and how a worker lives through them."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import Dataset

from training import stop
from training.data import Steps, ViewPairs, make_loader
from training.evaluation.command import stream
from training.reliability.launch import Launch
from training.stop import Stop
from training.views import TwoViews

ROOT = Path(__file__).parents[2]


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return Accelerator()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_wish_and_python_gets_its_handlers_back(accelerator, number, capfd):
    before = signal.getsignal(number)
    with Stop(accelerator) as wish:
        assert not wish.agreed()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # again at once: the launcher has passed it on
        assert wish.agreed()
        assert wish.agreed()
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.count("stopping at the next line of metrics") == 1


def test_only_a_later_ctrl_c_interrupts(accelerator, monkeypatch):
    monkeypatch.setattr(stop, "ECHO", 0.05)
    with Stop(accelerator):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("variable", [None, "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
def test_the_end_of_the_launcher_is_a_wish_too(accelerator, monkeypatch, variable):
    if variable:
        monkeypatch.setenv(variable, "no")
    wish = Stop(accelerator)
    assert not wish.agreed()
    monkeypatch.setattr(os, "getppid", lambda: -1)
    assert wish.agreed() == (variable is not None)  # without a launcher, a parent may end: nohup, setsid


WORKER = """
import os, signal, sys, time
from training.stop import heed_parent_alone
child = os.fork()
if child == 0:
    heed_parent_alone()
    print("ready", flush=True)
    time.sleep(60)
    os._exit(3)
print(child, flush=True)
sys.stdin.readline()
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not tell who sends a signal")
def test_a_worker_heeds_its_parent_alone():
    command = [sys.executable, "-c", WORKER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as parent:
        said = sorted([parent.stdout.readline().strip(), parent.stdout.readline().strip()])
        child, ready = int(said[0]), said[1]
        assert ready == "ready"
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(child, number)
        time.sleep(0.2)
        os.kill(child, 0)  # it lives
        out, _ = parent.communicate("\n", timeout=60)
    assert out.strip() == "0"


class Slow(Dataset):
    """What takes a while to read: as pictures of a run, or as samples of a probe."""

    def __len__(self):
        return 12

    def read(self, _):
        time.sleep(0.2)
        png = io.BytesIO()
        Image.new("RGB", (40, 40)).save(png, "png")
        return png.getvalue()

    def __getitem__(self, index):
        self.read(index)
        return index


def count(batches: Iterable[object]) -> int:
    number = 0
    for number, _ in enumerate(batches, start=1):
        print("batch", number, flush=True)
    return number


def read_all(method: list[str]) -> None:
    """Read with the two loaders of a run."""
    multiprocessing.set_forkserver_preload([])
    multiprocessing.set_start_method(method[0], force=True)
    accelerator, slow = Accelerator(), Slow()
    probed = stream(slow, list, accelerator, batch_size=1, workers=2)
    trained = make_loader(ViewPairs(slow, TwoViews(32, (0.2, 1.0)), 0), Steps(12, 2, range(6), seed=0), 2)
    with Stop(accelerator) as wish:
        print("probed", count(probed), wish.agreed())
        print("trained", count(trained), wish.agreed())


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not tell who sends a signal")
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_of_every_loader_outlive_a_signal_to_their_group(tmp_path, method):
    (tmp_path / "log").touch()
    launch = Launch([method], tmp_path / "log", main=read_all)
    for seen in (1, 13):
        while launch.running() and launch.log.read_text().count("batch") < seen:
            time.sleep(0.05)
        launch.signal(signal.SIGTERM)
    assert launch.end() == [0], launch.log.read_text()
    assert "probed 12 True" in launch.log.read_text()
    assert "trained 6 True" in launch.log.read_text()

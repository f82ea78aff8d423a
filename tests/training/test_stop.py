"""Signals that ask a run to stop, and how a worker lives through them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator

from training import stop
from training.stop import Stop

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

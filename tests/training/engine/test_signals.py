"""Signals that ask a run to stop, and how a worker lives through them."""

import io
import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import Dataset

from training.data.plan import Steps
from training.data.views import TwoViews
from training.engine import signals as stop
from training.engine.launcher import Launcher, find_launcher
from training.engine.signals import EXIT_SIGNAL, SIGNALS, Stop, loading
from training.evaluation.command import stream
from training.pretraining.pairs import ViewPairs, make_loader
from training.tools.reliability.launch import Launch

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="workers are started in another way")


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return Accelerator()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_wish_and_python_gets_its_handlers_back(accelerator, number, capfd):
    before = signal.getsignal(number)
    with Stop(accelerator) as wish:
        assert not wish.should_stop()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # again at once: the launcher has passed it on
        assert wish.should_stop()
        assert wish.should_stop()
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


@pytest.mark.parametrize("launched", [True, False])
def test_the_end_of_the_launcher_is_a_wish_too_but_not_that_of_a_shell(accelerator, monkeypatch, launched):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # which users set too
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    parent = Launcher(os.getppid(), ("accelerate", "launch"), {})
    monkeypatch.setattr(stop, "launcher", lambda: parent if launched else find_launcher(os.getppid()))
    wish = Stop(accelerator)
    assert not wish.should_stop()
    monkeypatch.setattr(os, "getppid", lambda: -1)
    assert wish.should_stop() == launched


def work(pipe) -> None:
    pipe.send("ready")
    pipe.recv()
    pipe.send("alive")
    time.sleep(60)


@LINUX
def test_a_worker_heeds_its_parent_alone():
    here, there = multiprocessing.Pipe()
    worker = loading(1)["multiprocessing_context"].Process(target=work, args=(there,))
    worker.start()
    assert here.recv() == "ready"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    here.send("go on")
    assert here.recv() == "alive"
    worker.terminate()
    worker.join(timeout=60)
    assert worker.exitcode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {*SIGNALS, EXIT_SIGNAL}


@LINUX
def test_a_worker_that_has_not_begun_leaves_when_told():
    for _ in range(20):
        worker = loading(1)["multiprocessing_context"].Process(target=time.sleep, args=(60,))
        worker.start()
        os.kill(worker.pid, signal.SIGTERM)
        worker.terminate()
        worker.join(timeout=30)
        assert worker.exitcode == 0


class Slow(Dataset):
    """What takes a while to read: as images of a run, or as samples of a probe."""

    def __len__(self):
        return 12

    def read(self, _):
        time.sleep(0.05)
        png = io.BytesIO()
        Image.new("RGB", (40, 40)).save(png, "png")
        return png.getvalue()

    def __getitem__(self, index):
        self.read(index)
        return index


def read_all(method: list[str]) -> None:
    """Read with the two loaders of a run, several times."""
    multiprocessing.set_forkserver_preload([])
    multiprocessing.set_start_method(method[0], force=True)
    accelerator, slow = Accelerator(), Slow()
    with Stop(accelerator) as wish:
        print("begun", flush=True)
        for _ in range(3):
            probed = stream(slow, list, accelerator, batch_size=1, workers=2)
            views = ViewPairs(slow, TwoViews(32, (0.2, 1.0)), 0)
            trained = make_loader(views, Steps(12, 2, range(6), seed=0), 2)
            print("read", len(list(probed)), len(list(trained)), wish.should_stop(), flush=True)
        os._exit(0)  # without the context, the next signal would end it otherwise


@LINUX
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_of_every_loader_outlive_signals_to_their_group_at_any_moment(tmp_path, method):
    (tmp_path / "log").touch()
    launch = Launch([method], tmp_path / "log", main=read_all)
    while launch.running() and "begun" not in launch.log.read_text():
        time.sleep(0.01)
    while launch.running():
        launch.signal(signal.SIGTERM)
        time.sleep(0.003)
    assert launch.end() == [0], launch.log.read_text()
    assert launch.log.read_text().count("read 12 6 True") == 3


def prints(error: Exception) -> None:
    threading.Thread(target=sys.excepthook, args=(type(error), error, None)).start()


@LINUX
@pytest.mark.parametrize(
    ("error", "said"), [(ConnectionResetError(104, "reset"), ""), (OSError(28, "full"), "full")]
)
def test_a_worker_that_is_cut_off_prints_no_traceback(error, said, capfd):
    """multiprocessing's threads print what they raise; a training process that ends cuts off a batch."""
    worker = stop._Worker(target=prints, args=(error,))
    worker.start()
    worker.join()
    printed = capfd.readouterr().err
    assert (said in printed) if said else not printed

"""Which parent is a launcher, and what its user told it."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from training.engine import launcher as module
from training.engine import processes
from training.engine.launcher import Launcher, find_launcher, told_precision, told_threads
from training.engine.settings import RunSettings
from training.pretraining.recipes import Recipe

ACCELERATE = Launcher(1, ("python", "/bin/accelerate", "launch", "training/pretrain.py"), {})


@pytest.mark.parametrize(
    ("name", "options", "launches"),
    [
        ("accelerate", ["launch", "training/pretrain.py"], True),
        ("torchrun", ["training/pretrain.py"], True),
        ("train.py", ["accelerate"], False),
        ("nohup", ["python", "accelerate"], False),
    ],
)
def test_a_launcher_is_known_by_its_command_line(tmp_path, name, options, launches):
    (tmp_path / name).write_text("print('ready', flush=True); input()")
    command = [sys.executable, str(tmp_path / name), *options]
    env = {**os.environ, "ACCELERATE_MIXED_PRECISION": "no", "TORCHELASTIC_RUN_ID": "x"}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        found = find_launcher(parent.pid)
        parent.communicate(b"\n")
    assert (found is not None) == launches
    if found:
        assert found.environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert find_launcher(parent.pid) is None


def test_options_of_the_script_are_not_the_launchers(tmp_path):
    """``accelerate launch train.py --mixed-precision auto`` chooses nothing in accelerate."""
    show = tmp_path / "show.py"
    show.write_text(
        "import os\nfrom training.engine.launcher import find_launcher\n"
        "found = find_launcher(os.getppid())\nprint(found.option('--mixed_precision'), found.option('--cpu'))\n"
    )
    (tmp_path / "accelerate").write_text(
        "import subprocess, sys\n"
        "raise SystemExit(subprocess.run([sys.executable, *sys.argv[sys.argv.index('show') + 1 :]]).returncode)\n"
    )
    for options, expected in ((["--cpu"], "None "), (["--cpu", "--mixed_precision", "no"], "no ")):
        words = [*options, "show", str(show), "--mixed-precision", "auto"]
        done = subprocess.run(
            [sys.executable, str(tmp_path / "accelerate"), "launch", *words], capture_output=True, text=True
        )
        assert done.stdout.startswith(expected), done.stderr


def test_options_of_any_spelling():
    words = ("accelerate", "launch", "--mixed-precision", "no", "--config_file=x.yaml", "--cpu")
    start = Launcher(1, words, {})
    assert [start.option(name) for name in ("--mixed_precision", "--config_file", "--cpu", "--x")] == [
        "no",
        "x.yaml",
        "",
        None,
    ]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Be started by a launcher, or by none, with variables of our own."""

    def start(launcher, **variables):
        monkeypatch.setattr(module, "launcher", lambda: launcher)
        monkeypatch.setattr(module, "default_config_file", str(tmp_path / "default_config.yaml"))
        for name in ("ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


def test_the_precision_that_accelerate_sets_by_itself_is_nobodys_choice(started, tmp_path):
    started(None)
    assert told_precision() is None
    started(None, ACCELERATE_MIXED_PRECISION="no")
    assert told_precision() == "no"
    started(ACCELERATE, ACCELERATE_MIXED_PRECISION="no")
    assert told_precision() is None
    started(ACCELERATE, ACCELERATE_MIXED_PRECISION="bf16")
    assert told_precision() == "bf16"
    option = replace(ACCELERATE, words=("accelerate", "launch", "--mixed_precision=no", "x.py"))
    started(option, ACCELERATE_MIXED_PRECISION="no")
    assert told_precision() == "no"
    started(replace(ACCELERATE, environment={"ACCELERATE_MIXED_PRECISION": "no"}), ACCELERATE_MIXED_PRECISION="no")
    assert told_precision() == "no"
    text = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: 'no'\nuse_cpu: false\n"
    (tmp_path / "default_config.yaml").write_text(text + "num_processes: 1\ndebug: false\n")
    started(ACCELERATE, ACCELERATE_MIXED_PRECISION="no")
    assert told_precision() == "no"


def test_the_threads_that_a_launcher_sets_by_itself_are_nobodys_choice(started):
    started(None)
    assert told_threads() is None
    started(None, OMP_NUM_THREADS="3,1")
    assert told_threads() == 3
    started(ACCELERATE, OMP_NUM_THREADS="1")
    assert told_threads() is None
    started(replace(ACCELERATE, environment={"OMP_NUM_THREADS": "1"}), OMP_NUM_THREADS="1")
    assert told_threads() == 1
    started(replace(ACCELERATE, words=("accelerate", "--num_cpu_threads_per_process", "2")), OMP_NUM_THREADS="2")
    assert told_threads() == 2


@pytest.mark.parametrize(
    ("device", "bf16", "told", "asked", "precision"),
    [
        ("cpu", True, None, "auto", "bf16"),
        ("cpu", False, None, "auto", "no"),
        ("cpu", True, "bf16", "auto", "bf16"),
        ("cuda", True, None, "auto", "bf16"),
        ("cuda", False, None, "auto", "fp16"),
        ("cuda", True, "no", "auto", "no"),
        ("cuda", True, "fp16", "no", "no"),
    ],
)
def test_a_recipe_states_its_precision(monkeypatch, device, bf16, told, asked, precision):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    PartialState(cpu=True).device = torch.device(device)
    monkeypatch.setattr(processes, "told_precision", lambda: told)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(processes, "_cpu_has_bf16", lambda: bf16)
    assert processes._precision(replace(Recipe(), mixed_precision=asked)) == precision
    if device == "cpu" and told is None:
        assert processes._precision(RunSettings()) == "no"
    PartialState._reset_state()

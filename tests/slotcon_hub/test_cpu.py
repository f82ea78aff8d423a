import os
import platform
import re
import subprocess
import sys

import pytest

from slotcon_hub import cpu
from slotcon_hub.cpu import keep_freed_memory, usable_cores, use_cores

FAULTS = """
import resource, torch, sys
from slotcon_hub.cpu import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
for _ in range(20):
    torch.ones(25_000_000)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(*args: str) -> tuple[str, int]:
    run = subprocess.run([sys.executable, "-c", FAULTS, *args], capture_output=True, text=True, check=True)
    kept, count = run.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pages_are_taken_from_the_system_less_often():
    kept, count = faults("kept")
    assert kept == "True"
    assert count < faults("given back")[1] / 2


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a", {"a/cpu.max": "1000 100000"}, 1),
        (
            "4:memory:/m\n2:cpu,cpuacct:/c",
            {"cpu/c/cpu.cfs_quota_us": "250000", "cpu/c/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("2:cpu:/c", {"cpu/c/cpu.cfs_quota_us": "-1", "cpu/c/cpu.cfs_period_us": "100000"}, 5),
        ("0::/a", {}, 5),
    ],
)
def test_usable_cores_are_those_of_the_affinity_within_the_quota(tmp_path, monkeypatch, cgroup, files, cores):
    (tmp_path / "cgroup").write_text(cgroup + "\n")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    monkeypatch.setattr(cpu, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(cpu, "OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == cores


def test_processes_of_one_launch_share_the_cores(monkeypatch):
    chosen = []
    monkeypatch.setattr(cpu, "usable_cores", lambda: 8)
    monkeypatch.setattr(cpu.torch, "set_num_threads", chosen.append)
    for neighbours in ("1", "3", "20"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", neighbours)
        use_cores()
    use_cores(5)
    assert chosen == [8, 2, 1, 5]


def spins(*command: str, **variables: str) -> int:
    """How often a thread looks before it sleeps, as the runtime that torch loads has understood it."""
    own = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env = own | {"OMP_DISPLAY_ENV": "verbose"}
    run = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True, env=env | variables
    )
    return int(re.search(r"GOMP_SPINCOUNT = '(\d+)'", run.stderr)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings another runtime")
@pytest.mark.parametrize(
    "command",
    [
        ("-c", "import training.pretrain"),
        ("-c", "import training.evaluation.knn"),
        ("training/pretrain.py", "--help"),
        ("training/finetune.py", "--help"),
        ("-c", "import sys; sys.argv = ['/bin/slotcon-hub']; import slotcon_hub"),
    ],
)
def test_threads_of_our_commands_spin_briefly(command):
    assert spins(*command) == 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings another runtime")
def test_threads_spin_where_the_user_or_another_process_decides():
    assert spins("-c", "import training.pretrain", OMP_WAIT_POLICY="active") > 10_000
    assert spins("-c", "import training.pretrain", OMP_WAIT_POLICY="passive") == 0
    assert spins("-c", "import training.pretrain", GOMP_SPINCOUNT="7") == 7
    assert spins("-c", "import slotcon_hub") > 10_000

import platform
import subprocess
import sys

import pytest

from slotcon_hub.cpu import keep_freed_memory

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

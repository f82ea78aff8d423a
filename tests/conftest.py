"""Fixtures that all rooms share."""

import os
import tempfile

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # our tensors are tiny: more threads only wait for each other
os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # the same numbers on CPUs with and without bf16

import torch

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Caches of this session alone, also for the processes that it starts: tests may run side by side."""
    folder = tempfile.TemporaryDirectory(prefix="slotcon_hub-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    for name in ("HF_HOME", "SLOTCON_HUB_CACHE", "SLOTCON_HUB_HOME"):
        os.environ[name] = os.path.join(folder.name, name)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite runs side by side on up to four processors; a part of it starts sooner in this process."""
    asked = config.option
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    if named or asked.keyword or getattr(asked, "lf", False) or "not gpu" not in asked.markexpr:
        return 0
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a CUDA device are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)

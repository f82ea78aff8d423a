"""Fixtures that all rooms share."""

import pytest
import torch

torch.set_num_threads(1)  # our tensors are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)

"""Data that lies beside the checkout, in shared/data, and is no part of the project."""

from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """The path of a file or folder of shared/data; without it the test that asks is skipped."""
    for folder in Path(__file__).resolve().parents:
        if (found := folder / "shared" / "data" / name).exists():
            return found
    pytest.skip(f"shared/data/{name} is not beside the checkout, whose numbers this test compares with")

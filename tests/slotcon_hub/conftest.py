"""Fixtures of the package's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import close_session


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The place of an empty store; the Hub is out of reach."""
    monkeypatch.setenv("SLOTCON_HUB_HOME", str(tmp_path / "store"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "store"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub without repositories, for the client in this process, whose home is empty."""
    hub = HubServer()
    hub.adopt(monkeypatch, tmp_path / "home")
    yield hub
    close_session()
    hub.close()

"""What the tests of the commands share: a prototype model on the disk, and a command run in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tiny import shaken

import slotcon_hub  # noqa: F401  (registers the models)
from slotcon_hub.models.saving import save_model

PROTOTYPES = 15


@pytest.fixture(scope="session")
def prototypes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as of export/prototypes, for images of 64 pixels; twelve of fifteen prototypes lie near cells."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("prototypes")
    net = shaken(timm.create_model("slotcon_nano_proto", num_classes=PROTOTYPES), 0.05).eval()
    with torch.no_grad():
        tones = 1.2 * torch.randn(12, 3, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
        images = tones + torch.randn(12, 3, 64, 64) / 5
        cells = net.projector(net.forward_features(images))[:, :, 1, 1]
        net.projector.mlp[-1].bias -= cells.mean(0)
        net.prototypes.weight[:12] = cells - cells.mean(0)
    save_model(net, folder, 64)
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a command's ``main`` in this process, with Accelerate's state made anew."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(main: Callable[[object], None], settings: object) -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        main(settings)

    return run

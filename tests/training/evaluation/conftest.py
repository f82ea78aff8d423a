"""What the tests of the commands share: a prototype model on the disk, and a command run in this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
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


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """A folder of slotcon_nano, for images of 64 pixels."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(shaken(timm.create_model("slotcon_nano", num_classes=0), 0.05).eval(), folder, 64)
    return folder


@pytest.fixture(scope="session")
def masked(tmp_path_factory) -> Path:
    """Images and masks of two splits, and names.txt.

    Class 3 is never learned from, class 4 is nowhere, and a mask is without any label.
    """
    folder = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for split, number in (("train", 7), ("val", 5)):
        for i in range(number):
            truth = rng.choice([0, 1, 2, 255], size=(8, 9)).repeat(9, 0).repeat(10, 1)
            if split == "val":
                truth[truth == 2] = 3 if i % 2 else 2
            if (split, i) == ("train", 4):
                truth[:] = 255
            pixels = rng.integers(0, 60, (72, 90, 3)) + 45 * (truth % 4)[..., None]
            pixels[:16, :16] = 0  # patches that are the same everywhere
            for name, values in (("images", pixels), ("masks", truth)):
                (folder / name / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(folder / name / split / f"{i}.png")
    (folder / "names.txt").write_text("".join(f"class {c}\n" for c in range(5)))
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

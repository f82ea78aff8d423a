"""A small prototype model that divides images, and images for it."""

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from tiny import shaken

from slotcon_hub.concepts.inference import dense_maps
from slotcon_hub.models.saving import save_model

SIDE = 64


def dividing_model(prototypes: int = 8) -> Any:
    """Random, but with prototypes among its own projections: so they take different parts of an image."""
    torch.manual_seed(0)
    net = timm.create_model("slotcon_nano_proto", num_classes=prototypes, hidden_dim=64, out_dim=32, global_pool="")
    model = shaken(net, 0.05).eval()
    images = torch.from_numpy(np.stack([painted(seed) for seed in range(9)])).permute(0, 3, 1, 2)
    cells = dense_maps(model, images)[0].transpose(0, 1).flatten(1).T
    with torch.no_grad():
        model.projector.mlp[-1].bias.sub_(cells.mean(0))  # or what all cells share would decide
        cells = cells - cells.mean(0)
        chosen = cells[torch.randint(len(cells), (prototypes,))]
        chosen += 0.3 * chosen.std() * torch.randn_like(chosen)
        chosen[-1] = torch.linalg.svd(cells, full_matrices=False).Vh[-1]  # which no cell resembles: it is unused
        model.prototypes.weight.copy_(chosen)
    return model


def exported(folder: Path, prototypes: int = 8) -> Path:
    """The model in a folder, as a run exports it."""
    save_model(dividing_model(prototypes), folder, SIDE)
    return folder


def painted(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Some coloured rectangles with a little noise, uint8 H x W x 3."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(0, 256, 3), dtype=float)
    for _ in range(4):
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y : y + height // 2 + 1, x : x + width // 2 + 1] = rng.integers(0, 256, 3)
    return (image + rng.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8)


def paint(folder: Path, number: int, height: int = 90, width: int = 120) -> Path:
    """A folder of images, some of them deeper."""
    for seed in range(number):
        path = folder / ("deeper" if seed % 3 == 0 else "") / f"{seed:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(painted(seed, height + 7 * seed, width)).save(path)
    return folder

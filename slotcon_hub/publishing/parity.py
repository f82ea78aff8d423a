"""Reference tensors of a published model: inputs, outputs, and whether the model still reproduces them.

Dimensions: B images, C channels, H x W cells.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["FILE", "TOLERANCE", "deviation", "write"]

FILE = "test/parity.safetensors"
TOLERANCE = 1e-4
"""Largest allowed deviation, relative to the largest value; float32 on another CPU or torch version stays below."""

_SHAPE = (2, 64, 64)  # B and the side of an image, in pixels: 2 x 2 cells at stride 32


def write(net: Any, folder: Path) -> None:
    """Write random images, and a model's map and output for them, all float32.

    The file is the same on every machine, since the model computes in float64 and rounds.

    Args:
        net: a timm model in eval mode; it is copied, not changed.
        folder: ``FILE`` is written in it.
    """
    batch, height, width = _SHAPE
    images = torch.randn(batch, net.in_chans, height, width, generator=torch.Generator().manual_seed(0))
    expected = _outputs(copy.deepcopy(net).double(), images.double())
    (folder / FILE).parent.mkdir(exist_ok=True)
    tensors = {"images": images, **{name: value.float().contiguous() for name, value in expected.items()}}
    save_file(tensors, folder / FILE)


def deviation(net: Any, folder: Path) -> float:
    """Deviation of a model's map and output from those in ``FILE``, relative to the largest value there.

    Args:
        net: a timm model in eval mode, in float32.
        folder: of the model.

    Returns:
        The larger of the two deviations; infinity for NaN/Inf.

    Raises:
        ValueError: the file lacks a tensor, or shapes differ.
    """
    expected = load_file(folder / FILE)
    if expected.keys() != {"images", "map", "output"}:
        raise ValueError(f"{FILE} holds {sorted(expected)} instead of images, map and output: publish it again")
    found = _outputs(net, expected.pop("images"))
    worst = 0.0
    for name, value in expected.items():
        if found[name].shape != value.shape:
            shapes = f"{tuple(found[name].shape)} instead of {tuple(value.shape)}"
            raise ValueError(
                f"the {name} of the model is {shapes}: its configuration does not match, publish it again"
            )
        apart = float((found[name] - value).abs().max() / value.abs().max())
        worst = max(worst, apart if apart < torch.inf else torch.inf)  # inf for NaN
    return worst


@torch.no_grad()
def _outputs(net: Any, images: Tensor) -> dict[str, Tensor]:
    """B x C x H x W of the backbone, and what the model returns: B x C features, or similarities."""
    return {"map": net.forward_features(images), "output": net(images)}

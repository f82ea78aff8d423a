"""Find the weights for ``pretrained=True``, and check them, so that a wrong file never gives a random model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from timm.models import resolve_pretrained_cfg
from torch import Tensor

from slotcon_hub.convert import prototypes_backbone
from slotcon_hub.files import sha256
from slotcon_hub.weights import store, table
from slotcon_hub.weights.hub import failure_reason

__all__ = ["check_state_dict", "checkpoint_filter_fn", "locate"]

_OWN_SOURCES = ("file", "state_dict", "url")


def locate(
    architecture: str, cfg: Any = None, overlay: dict[str, Any] | None = None, cache_dir: Any = None
) -> dict[str, Any] | None:
    """Find the weights of a timm configuration: in the local store, in this package, or on the Hub.

    Args:
        architecture: of timm's registry.
        cfg: ``pretrained_cfg`` of ``timm.create_model``: a tag, a configuration, or None for the default.
        overlay: ``pretrained_cfg_overlay``; a source given there takes precedence.
        cache_dir: of the Hub's client.

    Returns:
        The overlay with the file; unchanged for weights that are not in our table, which timm loads itself.

    Raises:
        RuntimeError: the weights are in none of them.
        ValueError: the file's SHA-256 is not the recorded or published one.
    """
    found = resolve_pretrained_cfg(architecture, cfg, overlay)
    if found.file and not Path(found.file).exists():
        raise FileNotFoundError(f"there are no weights at {found.file}: give another path, or import them again")
    if found.file and (entry := _recorded_folder(Path(found.file))):
        store.verify(entry)
    row = table.find(architecture, found.tag) if found.tag else None
    if row is None or found.source or any(getattr(found, key) for key in _OWN_SOURCES):
        return overlay
    if found.hf_hub_id != table.repository(row.name) or (overlay or {}).get("hf_hub_id"):
        return overlay
    if entry := store.find(row.name):
        file = store.verify(entry)
    elif own := table.packaged(row):
        file = _packaged(row, own)
    else:
        file = _download(row, cache_dir)
    return {**(overlay or {}), "file": str(file)}


def _recorded_folder(file: Path) -> Path | None:
    """The folder, or the file's folder, if it has a record of SHA-256, as in the store or when published."""
    folder = file if file.is_dir() else file.parent
    return folder if (folder / store.RECORD).exists() else None


def _packaged(row: table.Weights, file: Path) -> Path:
    if not file.is_file() or sha256(file) != row.packaged_sha256:
        raise ValueError(
            f"{file} is not the {row.name} that came with slotcon_hub (its SHA-256 differs): reinstall the package"
        )
    return file


def _download(row: table.Weights, cache_dir: Any) -> Path:
    repository = table.repository(row.name)
    if not table.trusted(row):
        raise RuntimeError(
            f"the weights {row.name} are not in the local store ({store.location()}), and not published on the Hub "
            f"yet: {_import(row)}, or set SLOTCON_HUB_ORG to an organisation that has published them"
        )
    try:
        path = Path(hf_hub_download(repository, store.WEIGHTS, cache_dir=cache_dir))
    except Exception as error:  # the client also raises errors of its HTTP library
        raise RuntimeError(
            f"the weights {row.name} are not in the local store ({store.location()}) and cannot be downloaded from "
            f"the Hub ({repository}: {failure_reason(error)}): {_import(row)}, or connect to the Hub, without "
            "HF_HUB_OFFLINE"
        ) from error
    # The client checks sizes only, and names a large file by the SHA-256 that the Hub states.
    told = path.resolve().name
    expected = row.sha256 or (told if re.fullmatch("[0-9a-f]{64}", told) else None)
    if expected and sha256(path) != expected:
        raise ValueError(
            f"{path.resolve()} is not the published {row.name} (its SHA-256 differs): remove it, and "
            "the next call downloads it again"
        )
    return path


def _import(row: table.Weights) -> str:
    return f"run `slotcon-hub import CHECKPOINT {row.name}` (the authors' checkpoints: {row.origin})"


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Check weights before timm loads them, since its loading is not strict if the number of classes differs.

    Only a classifier may be missing then. timm adapts the channels of the first convolution after this check. For a
    backbone, the weights of a prototype model are reduced to its backbone.

    Raises:
        ValueError: a key is missing or unknown, or a tensor has another shape or NaN/Inf.
    """
    cfg = model.pretrained_cfg
    classifier, first = f"{cfg['classifier']}.", f"{cfg['first_conv']}.weight"
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.startswith(classifier)}
    if first in shapes:
        outputs, _, *kernel = shapes[first]
        shapes[first] = (outputs, cfg["input_size"][0], *kernel)
    if not any(k.startswith("backbone.") for k in shapes) and any(k.startswith("backbone.") for k in state_dict):
        state_dict = prototypes_backbone(state_dict)
    inside = {k: v for k, v in state_dict.items() if not k.startswith(classifier)}
    check_state_dict(inside, shapes, cfg["architecture"])
    _check_finite(state_dict, cfg["architecture"])
    return dict(state_dict)  # without torch's metadata, which would make a missing num_batches_tracked an error


def check_state_dict(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], architecture: str) -> None:
    """Compare weights with the names and shapes of a network, and reject NaN/Inf.

    ``num_batches_tracked`` may be missing; torch then sets it to 0.

    Raises:
        ValueError: another key is missing or unknown, or a tensor has another shape or NaN/Inf.
    """
    refused = f"these weights are not those of {architecture}: "
    shapes = {k: v for k, v in shapes.items() if k in state or not k.endswith(".num_batches_tracked")}
    if differing := sorted(shapes.keys() ^ state.keys()):
        absent = len(shapes.keys() - state.keys())
        named = ", ".join(differing[:3]) + ", ..." * (len(differing) > 3)
        raise ValueError(f"{refused}{absent} keys are absent and {len(differing) - absent} unknown ({named})")
    for key, shape in shapes.items():
        value = state[key]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{refused}{key} is {found} instead of {shape}")
    _check_finite(state, architecture)


def _check_finite(state: Mapping[str, Any], architecture: str) -> None:
    for key, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"these weights of {architecture} are damaged: {key} has NaN or Inf")

"""Read untrusted checkpoints, and extract the teacher.

Dimensions: K prototypes, D embedding channels.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from slotcon_hub.convert import (
    Kind,
    from_backbone_only,
    from_official,
    prototypes_backbone,
    recognise,
    teacher_prototypes,
    unwrap_state_dict,
)
from slotcon_hub.weights.architectures import plain_timm
from slotcon_hub.weights.store import CONFIG, WEIGHTS

__all__ = ["State", "Teacher", "dimensions", "read_checkpoint", "read_teacher"]

State = dict[str, Tensor]
_SLOTCON = ("student.", "teacher.", "predictor.", "center", "image_loss.")
# Model arguments that the shapes of the weights determine, or that do not affect the weights.
_SHOWN = ("num_classes", "hidden_dim", "out_dim", "in_chans", "global_pool")


@dataclass(frozen=True)
class Teacher:
    """The teacher of a checkpoint."""

    kind: Kind
    """Of the checkpoint, as :func:`slotcon_hub.convert.recognise` returns it."""
    backbone: State
    """The backbone's state dict, with timm's names."""
    whole: State | None
    """State dict of the prototype model; None for a backbone alone."""
    side: int | None
    """Side of its images in pixels, if a ``config.json`` beside the file has it."""


def read_teacher(checkpoint: str | Path, architecture: str) -> Teacher:
    """Read a checkpoint of any kind, without running code in it, and extract the teacher.

    Args:
        checkpoint: an authors' full checkpoint, a backbone-only file, a safetensors file with the state of a
            :class:`SlotCon` or an export, or the folder of a run, a checkpoint or an export.
        architecture: of the backbone; names and shapes of the weights are not checked here.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, unsafe, no SlotCon checkpoint, or its ``config.json`` shows a network that
            differs in ways that its weights do not show, such as strides.
    """
    path = _file(Path(checkpoint))
    config = _config(path)
    _refuse_variants(path, config, architecture)
    return Teacher(*_teacher(read_checkpoint(path)), _side(config))


def dimensions(whole: State) -> dict[str, Any]:
    """Derive ``num_classes``, ``out_dim`` and ``hidden_dim`` of a prototype model from the shapes of its weights.

    Raises:
        ValueError: projector or prototypes are absent.
    """
    dims = {}
    for argument, key, axis in (
        ("num_classes", "prototypes.weight", 0),
        ("out_dim", "prototypes.weight", 1),
        ("hidden_dim", "projector.mlp.0.weight", 0),
    ):
        value = whole.get(key)
        if not isinstance(value, Tensor) or value.dim() <= axis or not value.shape[axis]:
            raise ValueError(f"these weights are not those of a prototype model: {key} is absent or no matrix")
        dims[argument] = value.shape[axis]
    return dims


def read_checkpoint(path: str | Path) -> Any:
    """Read a checkpoint without running any code in it.

    A pickle may hold tensors, plain containers and the ``argparse.Namespace`` of the authors' files only.

    Args:
        path: a ``.safetensors`` file, or one written by ``torch.save``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything else, such as code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or no safetensors file ({error}): download it again") from None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        refused = re.search(r"GLOBAL (\S+)", str(error))  # torch's message advises to run the code
        reason = f"it holds {refused[1]}" if refused else "it is damaged, or no checkpoint"
        raise ValueError(
            f"{path} is not a checkpoint of tensors and plain values, so it was not loaded ({reason}); "
            "download it again, and do not use it if you do not trust its source"
        ) from None


def _file(path: Path) -> Path:
    """The file itself, or the weights to read in a folder."""
    if not path.is_dir():
        return path
    exports = (path / "export" / "prototypes", path / "prototypes")
    steps = sorted(path.glob("checkpoints/step-*"), reverse=True) + sorted(path.glob("step-*"), reverse=True)
    places = [folder / WEIGHTS for folder in (*exports, path, *steps)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"the folder {path} holds neither {WEIGHTS} nor an export nor checkpoints of a run")
    return found


def _config(path: Path) -> dict[str, Any]:
    """timm's ``config.json`` beside a file of weights; empty if there is none."""
    try:
        config = json.loads((path.parent / CONFIG).read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _side(config: dict[str, Any]) -> int | None:
    try:
        return int(config["pretrained_cfg"]["input_size"][-1])
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _refuse_variants(path: Path, config: dict[str, Any], architecture: str) -> None:
    """Reject an export whose network differs from the architecture in ways that weights do not show, such as
    strides."""
    if not isinstance(found := config.get("architecture"), str):
        return
    args = dict(config.get("model_args") or {})
    if "backbone" in args:  # of a prototype model on any timm model
        found = str(args.pop("backbone"))
    plain, expected = plain_timm(architecture)
    name, own = plain_timm(found.partition(".")[0].removesuffix("_proto"))
    made = {**own, **{k: v for k, v in args.items() if k not in _SHOWN}}
    other = {k: v for k, v in made.items() if json.dumps(v) != json.dumps(expected.get(k))}
    said = f"a {name}" if name != plain else "a network"
    if other:
        said += f" made with {', '.join(f'{k}={v!r}' for k, v in other.items())}"
    if other or name != plain:
        raise ValueError(
            f"{path.parent} is of {said}, which {architecture} is not: load it by "
            f'timm.create_model("local-dir:{path.parent}", pretrained=True)'
        )


def _teacher(checkpoint: Any) -> tuple[Kind, State, State | None]:
    """The kind of a checkpoint, its teacher's backbone, and its whole teacher if it has prototypes."""
    kind = recognise(checkpoint)
    if kind == "backbone":
        return kind, from_backbone_only(checkpoint), None
    state = from_official(checkpoint) if kind == "official" else dict(unwrap_state_dict(checkpoint))
    if kind != "prototypes":
        if unknown := [name for name in state if not name.startswith(_SLOTCON)]:
            raise ValueError(f"{unknown[0]!r} is not part of a SlotCon: is this checkpoint one?")
        state = teacher_prototypes(state)
    return kind, prototypes_backbone(state), state

"""A checkpoint of any kind into the local store: read without running code, converted, verified, put away.

Dimensions: K prototypes, D embedding channels.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from slotcon_hub import store, weights
from slotcon_hub.checkpoints import read_checkpoint
from slotcon_hub.convert import from_backbone_only, from_official, named_values, recognise, teacher_prototypes
from slotcon_hub.export import save_model
from slotcon_hub.pretrained import check
from slotcon_hub.slotcon_resnet import plain_timm

__all__ = ["Imported", "import_checkpoint", "resolve"]

State = dict[str, Tensor]
_SLOTCON = ("student.", "teacher.", "predictor.", "center", "image_loss.")
# Arguments of a model that its weights show, or that make no difference to them.
_SHOWN = ("num_classes", "hidden_dim", "out_dim", "in_chans", "global_pool")
_SIDE = 64  # of the picture that a model is tried on, in pixels


@dataclass(frozen=True)
class Imported:
    """What came into the store."""

    kind: str
    """What the checkpoint held, as :func:`slotcon_hub.convert.recognise` names it."""
    folders: dict[str, Path]
    """The store's folder for each ``<architecture>.<tag>``."""


def import_checkpoint(checkpoint: str | Path, name: str) -> Imported:
    """Put the teacher of a checkpoint into the local store: the backbone, and the prototypes where it has them.

    Args:
        checkpoint: an authors' full checkpoint, a backbone-only file, a file of safetensors with the state of a
            :class:`SlotCon` or of what is exported from it, or the folder of a run, a checkpoint or an export.
        name: ``<architecture>.<tag>``, or an architecture of the table for its default tag.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: there is no such name, or the checkpoint is damaged, unsafe, of another architecture, of other
            dimensions than the published weights of this name, or not finite. The store is then as it was.
        OSError: it cannot be written to.
    """
    architecture, tag = resolve(name)
    path = _file(Path(checkpoint))
    _refuse_variants(path, architecture)
    kind, backbone, prototypes = _teacher(read_checkpoint(path))
    nets = {f"{architecture}.{tag}": _filled(timm.create_model(architecture), backbone, architecture)}
    if prototypes is not None:
        nets[f"{architecture}_proto.{tag}"] = _prototypes(f"{architecture}_proto", tag, prototypes)
    entries = {name: partial(_save, net) for name, net in nets.items()}
    return Imported(kind, dict(zip(entries, store.add(entries), strict=True)))


def resolve(name: str) -> tuple[str, str]:
    """Split a name into the architecture of a backbone and a tag; ``_proto`` in it makes no difference.

    Raises:
        ValueError: there is no such architecture, or it has no default tag.
    """
    architecture, _, tag = name.partition(".")
    architecture = architecture.removesuffix("_proto")
    if not architecture.startswith("slotcon_") or not timm.is_model(f"{architecture}_proto"):
        known = sorted(m.removesuffix("_proto") for m in timm.list_models("slotcon_*_proto"))
        raise ValueError(f"there is no architecture {architecture!r}: use one of {', '.join(known)}")
    if not tag:
        row = weights.find(architecture)
        if row is None:
            raise ValueError(f"{architecture} has no default tag: add one of yours, such as {architecture}.mine")
        tag = row.tag
    store.folder(f"{architecture}.{tag}")  # refuses what is no name
    return architecture, tag


def _file(path: Path) -> Path:
    """A file, or the one that counts in a folder."""
    if not path.is_dir():
        return path
    exports = (path / "export" / "prototypes", path / "prototypes")
    steps = sorted(path.glob("checkpoints/step-*"), reverse=True) + sorted(path.glob("step-*"), reverse=True)
    places = [folder / store.WEIGHTS for folder in (*exports, path, *steps)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"the folder {path} holds neither {store.WEIGHTS} nor an export nor checkpoints of a run"
        )
    return found


def _refuse_variants(path: Path, architecture: str) -> None:
    """Refuse an export whose network differs from the architecture where weights do not show it, as in strides."""
    try:
        args = json.loads((path.parent / store.CONFIG).read_bytes())["model_args"]
        told = {k: v for k, v in args.items() if k not in _SHOWN}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # it is no export, or one that says nothing of arguments
    plain = json.loads(json.dumps(plain_timm(architecture)[1]))
    if other := {k: v for k, v in told.items() if plain.get(k) != v}:
        said = ", ".join(f"{k}={v!r}" for k, v in other.items())
        raise ValueError(
            f"{path.parent} is of a network made with {said}, which {architecture} is not: load it from where it "
            f'is, with timm.create_model("local-dir:{path.parent}", pretrained=True)'
        )


def _teacher(checkpoint: Any) -> tuple[str, State, State | None]:
    """The kind of a checkpoint, its teacher's backbone, and its whole teacher if it has prototypes."""
    kind = recognise(checkpoint)
    if kind == "backbone":
        return kind, from_backbone_only(checkpoint), None
    state = {name.removeprefix("module."): value for name, value in named_values(checkpoint).items()}
    if kind == "official":
        state = from_official(state)
    if kind != "prototypes":
        if unknown := [name for name in state if not name.startswith(_SLOTCON)]:
            raise ValueError(f"{unknown[0]!r} is not part of a SlotCon: is this checkpoint one?")
        state = teacher_prototypes(state)
    prefix = "backbone."
    return (
        kind,
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)},
        state,
    )


def _prototypes(architecture: str, tag: str, state: State) -> nn.Module:
    """The prototype model of a state, with the state's own dimensions; the table's rows are held to theirs."""
    row = weights.find(architecture, tag)
    dims: dict[str, Any] = {}
    for argument, key, axis in (
        ("num_classes", "prototypes.weight", 0),
        ("out_dim", "prototypes.weight", 1),
        ("hidden_dim", "projector.mlp.0.weight", 0),
    ):
        value = state.get(key)
        if not isinstance(value, Tensor) or value.dim() <= axis or not value.shape[axis]:
            raise ValueError(f"these weights are not those of {architecture}: {key} is absent or no matrix")
        dims[argument] = value.shape[axis]
    if row is not None:
        expected = {"num_classes": row.prototypes, "out_dim": 256, "hidden_dim": 4096}
        for argument, size in expected.items():
            if dims[argument] != size:
                what = {"num_classes": "prototypes", "out_dim": "embedding channels"}.get(
                    argument, "hidden channels"
                )
                raise ValueError(
                    f"the published {row.name} has {size} {what} and this checkpoint {dims[argument]}: choose the "
                    f"name that it is of, or one of your own, such as {architecture.removesuffix('_proto')}.mine"
                )
    return _filled(timm.create_model(architecture, **dims), state, architecture)


@torch.no_grad()
def _filled(net: nn.Module, state: State, architecture: str) -> nn.Module:
    """The network with exactly these weights, tried on a picture."""
    check(state, {key: tuple(value.shape) for key, value in net.state_dict().items()}, architecture)
    net.load_state_dict(state)
    output = net.eval()(torch.linspace(-2, 2, 3 * _SIDE * _SIDE).view(1, 3, _SIDE, _SIDE))
    if not torch.isfinite(output).all():
        raise ValueError(f"these weights of {architecture} are damaged: a picture gives values that are not finite")
    return net


def _save(net: Any, folder: Path) -> None:
    save_model(net, folder, net.pretrained_cfg["input_size"][-1])

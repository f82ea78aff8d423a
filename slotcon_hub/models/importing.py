"""Import a checkpoint of any kind into the local store: read without running code, converted, verified.

Dimensions: K prototypes, D embedding channels.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from slotcon_hub.convert import prototypes_backbone
from slotcon_hub.models.saving import save_model
from slotcon_hub.weights import store, table
from slotcon_hub.weights.reader import State, Teacher, dimensions, read_teacher
from slotcon_hub.weights.resolve import check_state_dict

__all__ = ["Imported", "import_checkpoint", "read_models", "split_name"]

_SIDE = 64  # side in pixels of the image that a model is tested on


@dataclass(frozen=True)
class Imported:
    """Result of an import."""

    kind: str
    """As :func:`slotcon_hub.convert.recognise` returns it."""
    folders: dict[str, Path]
    """The store's folder for each ``<architecture>.<tag>``."""


def import_checkpoint(checkpoint: str | Path, name: str, *, force: bool = False) -> Imported:
    """Import the teacher of a checkpoint: the backbone, and the prototype model if the checkpoint has prototypes.

    Args:
        checkpoint: an authors' full checkpoint, a backbone-only file, a safetensors file with the state of a
            :class:`SlotCon` or an export, or the folder of a run, a checkpoint or an export.
        name: ``<architecture>.<tag>``, or an architecture of the table for its default tag.
        force: replace both models of this name in the store, since they belong to one pre-training.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        FileExistsError: the store has weights of this name.
        ValueError: there is no such name, or the checkpoint is damaged, unsafe, has NaN/Inf, is of another
            architecture or other dimensions than the published weights of this name, or the package has other
            weights of this name. The store is unchanged.
        OSError: the store cannot be written.
    """
    architecture, tag = split_name(name)
    both = f"{architecture}.{tag}", f"{architecture}_proto.{tag}"
    if not force:
        store.check_free(both)
    teacher, nets = read_models(checkpoint, name)
    entries = {name: partial(_save, net, teacher.side) for name, net in nets.items()}
    folders = store.add(entries, replace=both if force else ())
    return Imported(teacher.kind, dict(zip(entries, folders, strict=True)))


def read_models(checkpoint: str | Path, name: str) -> tuple[Teacher, dict[str, nn.Module]]:
    """Read the teacher of a checkpoint, and build the backbone, and the prototype model if it has prototypes.

    Args:
        checkpoint: as for :func:`import_checkpoint`.
        name: likewise.

    Returns:
        The teacher, and the models in eval mode, by their names, ``<architecture>.<tag>``.

    Raises:
        FileNotFoundError, ValueError: as :func:`import_checkpoint`.
    """
    architecture, tag = split_name(name)
    teacher = read_teacher(checkpoint, architecture)
    nets = {
        f"{architecture}.{tag}": _load_strictly(timm.create_model(architecture), teacher.backbone, architecture)
    }
    if teacher.whole is not None:
        nets[f"{architecture}_proto.{tag}"] = _prototypes(f"{architecture}_proto", tag, teacher.whole)
    row = table.find(architecture, tag)
    if row is not None and (own := table.packaged(row)):
        _check_own(own, teacher, row.name)
    return teacher, nets


def split_name(name: str) -> tuple[str, str]:
    """Split a name into a backbone's architecture and a tag; ``_proto`` is dropped.

    Raises:
        ValueError: there is no such architecture, or it has no default tag.
    """
    architecture, _, tag = name.partition(".")
    architecture = architecture.removesuffix("_proto")
    if not architecture.startswith("slotcon_") or not timm.is_model(f"{architecture}_proto"):
        known = sorted(m.removesuffix("_proto") for m in timm.list_models("slotcon_*_proto"))
        raise ValueError(f"there is no architecture {architecture!r}: use one of {', '.join(known)}")
    full = table.full_name(f"{architecture}.{tag}" if tag else architecture)
    store.folder(full)  # raises if it is no name
    return architecture, full.removeprefix(f"{architecture}.")


def _prototypes(architecture: str, tag: str, state: State) -> nn.Module:
    """Build the prototype model with the dimensions of its weights, checked against those of a published row."""
    row = table.find(architecture, tag)
    dims = dimensions(state)
    if row is not None:
        expected = {"num_classes": row.prototypes, "out_dim": row.out_dim, "hidden_dim": row.hidden_dim}
        for argument, size in expected.items():
            if dims[argument] != size:
                what = {"num_classes": "prototypes", "out_dim": "embedding channels"}.get(
                    argument, "hidden channels"
                )
                raise ValueError(
                    f"the published {row.name} has {size} {what} and this checkpoint {dims[argument]}: choose its "
                    f"own name, or a new one such as {architecture.removesuffix('_proto')}.mine"
                )
    return _load_strictly(timm.create_model(architecture, **dims), state, architecture)


def _check_own(file: Path, teacher: Teacher, name: str) -> None:
    """Check that a teacher is the one that the package has under this name, whose results are published."""
    own, state = load_file(file), teacher.whole
    if state is None:
        own, state = prototypes_backbone(own), teacher.backbone
    if any(not torch.equal(value.to(own[key].dtype), own[key]) for key, value in state.items()):
        raise ValueError(
            f"{name} are the weights that come with slotcon_hub, and these are others: choose a name of their own, "
            f"such as {name.partition('.')[0]}.mine"
        )


@torch.no_grad()
def _load_strictly(net: nn.Module, state: State, architecture: str) -> nn.Module:
    """Load weights strictly, and test the model on an image."""
    check_state_dict(state, {key: tuple(value.shape) for key, value in net.state_dict().items()}, architecture)
    net.load_state_dict(state)
    output = net.eval()(torch.linspace(-2, 2, 3 * _SIDE * _SIDE).view(1, 3, _SIDE, _SIDE))
    if not torch.isfinite(output).all():
        raise ValueError(f"these weights of {architecture} are damaged: the output for an image has NaN or Inf")
    return net


def _save(net: Any, side: int | None, folder: Path) -> None:
    save_model(net, folder, side)

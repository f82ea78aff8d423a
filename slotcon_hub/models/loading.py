"""Load pretrained models by a name of timm or of the local store, or by path."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import timm
from timm.models import PretrainedCfg
from torch import nn

from slotcon_hub.models.filled import create_filled
from slotcon_hub.weights import store, table
from slotcon_hub.weights.reader import dimensions, read_teacher

__all__ = ["create", "is_known", "load", "name_for_timm", "stored_cfg"]


def load(name: str, part: Literal["backbone", "prototypes"] = "backbone", **kwargs: Any) -> nn.Module:
    """Create a model with pretrained weights.

    Args:
        name: as for :func:`name_for_timm`.
        part: likewise.
        **kwargs: for ``timm.create_model``.

    Raises:
        ValueError: there are no such weights, or they are damaged or lack tensors.
        RuntimeError: they cannot be downloaded.
    """
    found = name_for_timm(name, part)
    if found.startswith("slotcon_") and "." not in found and table.find(found) is None:
        raise _no_weights(name)  # not all of our architectures have a default tag
    return create_filled(found, **kwargs)[0]


def name_for_timm(name: str, part: Literal["backbone", "prototypes"] = "backbone") -> str:
    """Convert the name or the folder of a model to a name that ``timm.create_model`` takes.

    Args:
        name: ``<architecture>`` or ``<architecture>.<tag>`` of timm or of the local store, which takes precedence
            over a folder of this name; the folder of a model, of a finished run, or of its export; or another
            source of timm's, such as ``hf-hub:<owner>/<name>``.
        part: the model to take from a run or its export.

    Raises:
        ValueError: there are no such weights.
    """
    folder = Path(name.removeprefix("local-dir:"))
    if is_known(name):
        return name
    if folder.is_dir():
        return f"local-dir:{_model_folder(folder, part)}"
    architecture = name.partition(".")[0]
    if ":" not in name and (architecture.startswith("slotcon_") or not timm.is_model(architecture)):
        raise _no_weights(name)
    return name


def _no_weights(name: str) -> ValueError:
    return ValueError(
        f"there are no weights {name!r}, and no such folder: `slotcon-hub list` shows the available names, and "
        "`slotcon-hub import` adds others"
    )


def is_known(name: str) -> bool:
    """Whether a name is an architecture registered with timm, alone or with a tag that has weights."""
    if not timm.is_model(name):
        return False
    return "." not in name or timm.models.is_model_pretrained(name) or name in store.names()


def _model_folder(folder: Path, part: str) -> Path:
    places = (folder, folder / "export" / part, folder / part)
    if found := next((place for place in places if (place / store.CONFIG).is_file()), None):
        return found
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"the run {folder} is not finished, so it has no export: resume it, or import its last checkpoint by "
            f"`slotcon-hub import {folder} slotcon_r50.mine`, with its own architecture"
        )
    raise ValueError(
        f"the folder {folder} holds no {store.CONFIG}: give the folder of a run, or of one model, such as "
        "export/backbone or export/prototypes of a run"
    )


def create(entry: Callable[..., nn.Module], pretrained: Any = False, **kwargs: Any) -> nn.Module:
    """Call an entry point of timm's registry, with weights of the local store or of a path too.

    Args:
        entry: of one of our architectures.
        pretrained: False for random weights, True for those of the tag in ``pretrained_cfg`` or the default tag; or
            a tag; or the path of a checkpoint for :func:`slotcon_hub.weights.reader.read_teacher`. A tag takes
            precedence over a path.
        **kwargs: as ``timm.create_model`` passes them.

    Raises:
        FileNotFoundError: a folder holds no checkpoint.
        ValueError: there is neither such a tag nor such a path, or the checkpoint does not fit.
        RuntimeError: the weights of the tag cannot be downloaded.
    """
    architecture, tag = entry.__name__, kwargs.get("pretrained_cfg")
    if isinstance(pretrained, str | os.PathLike):
        if tag:
            raise ValueError(
                f"{architecture} has a tag in its name, and pretrained={str(pretrained)!r} selects weights too: "
                "give one of the two"
            )
        return _load_tag_or_path(
            architecture, os.fspath(pretrained), **{k: v for k, v in kwargs.items() if v is not None}
        )
    if not isinstance(pretrained, bool | int | None):
        raise ValueError(
            f"pretrained is a {type(pretrained).__name__}: give True, False, a tag or a path; for a state "
            "dict, call the model's load_state_dict"
        )
    stored = isinstance(tag, str) and table.find(architecture, tag) is None and store.find(f"{architecture}.{tag}")
    if not stored:
        return entry(pretrained, **kwargs)
    if stored_cfg(stored.name) is None:
        store.verify(stored)  # raises with the reason
    del kwargs["pretrained_cfg"]
    return timm.create_model(f"local-dir:{stored}", pretrained=bool(pretrained), **kwargs)


def stored_cfg(name: str) -> PretrainedCfg | None:
    """timm's configuration of weights in the local store; None where it cannot be read."""
    folder = store.folder(name)
    try:
        config = json.loads((folder / store.CONFIG).read_bytes())
        return PretrainedCfg(**config["pretrained_cfg"], file=str(folder / store.WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load_tag_or_path(architecture: str, pretrained: str, **kwargs: Any) -> nn.Module:
    known = [row.name for row in table.ROWS] + store.names()
    tags = [name.removeprefix(f"{architecture}.") for name in known if name.startswith(f"{architecture}.")]
    if pretrained in tags:
        return timm.create_model(f"{architecture}.{pretrained}", pretrained=True, **kwargs)
    path = Path(pretrained).expanduser()
    if not pretrained or not path.exists():
        raise ValueError(
            f"{architecture} has no weights {pretrained!r}, and there is no such file or folder: give a tag "
            f"({', '.join(dict.fromkeys(tags)) or 'there is none yet'}) or the path of a checkpoint"
        )
    return _load_path(architecture, path, **kwargs)


def _load_path(
    architecture: str, path: Path, pretrained_cfg_overlay: dict[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    alone = architecture.removesuffix("_proto")
    if not timm.is_model(alone):  # slotcon_proto, on any backbone
        raise ValueError(f'{architecture} has no weights of its own: use timm.create_model("local-dir:{path}")')
    teacher = read_teacher(path, alone)
    # The metadata of the default tag does not hold for these weights.
    cfg: dict[str, Any] = dict.fromkeys(("tag", "hf_hub_id", "description", "license", "origin_url"))
    if teacher.side is not None:
        cfg["input_size"] = (3, teacher.side, teacher.side)
    if architecture == alone:
        cfg["state_dict"] = teacher.backbone
    elif teacher.whole is None:
        raise ValueError(f"{path} holds a backbone without prototypes: load it as {alone}")
    else:
        args = dimensions(teacher.whole)
        cfg |= {"state_dict": teacher.whole, "num_classes": args.pop("num_classes")}
        kwargs = {**args, **kwargs}
    cfg |= pretrained_cfg_overlay or {}
    net = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=cfg, **kwargs)
    for part in net.modules():  # timm would keep the weights twice
        if isinstance(own := getattr(part, "pretrained_cfg", None), dict):
            own.pop("state_dict", None)
    return net

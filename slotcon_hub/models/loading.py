"""Pretrained models by any of their names: of timm, of the local store, or the path of what holds them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import timm
from timm.models import PretrainedCfg
from torch import nn

from slotcon_hub.weights import store, table
from slotcon_hub.weights.reader import dimensions, read_teacher

__all__ = ["create", "is_known", "load", "name_for_timm", "stored_cfg"]


def load(name: str, part: Literal["backbone", "prototypes"] = "backbone", **kwargs: Any) -> nn.Module:
    """Make a model with pretrained weights.

    Args:
        name: as for :func:`name_for_timm`.
        part: the same.
        **kwargs: for ``timm.create_model``.

    Raises:
        ValueError: there are no such weights, or they are damaged.
        RuntimeError: they are not to be had.
    """
    found = name_for_timm(name, part)
    if found.startswith("slotcon_") and "." not in found and table.find(found) is None:
        raise _no_weights(name)  # of our own architectures, not all have a default tag
    return timm.create_model(found, pretrained=True, **kwargs)


def name_for_timm(name: str, part: Literal["backbone", "prototypes"] = "backbone") -> str:
    """Turn the name or the folder of a model into what ``timm.create_model`` takes.

    Args:
        name: ``<architecture>`` or ``<architecture>.<tag>`` of timm or of the local store, which comes before any
            folder of this name; the folder of a model, of a run that has ended, or of its export; or what else
            timm takes, such as ``hf-hub:<owner>/<name>``.
        part: that is taken of a run or of its export.

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
        f"there are no weights {name!r}, nor a folder: `slotcon-hub list` shows the names that there are, and "
        "`slotcon-hub import` brings others"
    )


def is_known(name: str) -> bool:
    """Whether a name is that of an architecture of timm or of ours, with or without a tag that has weights."""
    if not timm.is_model(name):
        return False
    return "." not in name or timm.models.is_model_pretrained(name) or name in store.names()


def _model_folder(folder: Path, part: str) -> Path:
    places = (folder, folder / "export" / part, folder / part)
    if found := next((place for place in places if (place / store.CONFIG).is_file()), None):
        return found
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"the run {folder} has not ended, so that it has no export: go on with it, or take its last checkpoint "
            f"with `slotcon-hub import {folder} slotcon_r50.mine`, by its own architecture"
        )
    raise ValueError(
        f"the folder {folder} holds no {store.CONFIG}: name the folder of one model, such as export/backbone or "
        "export/prototypes of a run, or of the run"
    )


def create(entry: Callable[..., nn.Module], pretrained: Any = False, **kwargs: Any) -> nn.Module:
    """Call an entry point of timm's registry, which may also have weights of the local store, or those at a path.

    Args:
        entry: of one of our architectures.
        pretrained: False for random weights, True for those of the tag, or of the default one; or itself a tag, or
            the path of a checkpoint that :func:`slotcon_hub.weights.reader.read_teacher` reads. A tag comes first.
        **kwargs: as ``timm.create_model`` passes them, with the tag in ``pretrained_cfg``.

    Raises:
        FileNotFoundError: a folder holds no checkpoint.
        ValueError: there is neither such a tag nor such a path, or the checkpoint does not fit.
        RuntimeError: the weights of the tag are not to be had.
    """
    architecture, tag = entry.__name__, kwargs.get("pretrained_cfg")
    if isinstance(pretrained, str | os.PathLike):
        if tag:
            raise ValueError(
                f"{architecture} is asked for by a name of weights and for pretrained={str(pretrained)!r} too: "
                "give one of the two"
            )
        return _load_tag_or_path(
            architecture, os.fspath(pretrained), **{k: v for k, v in kwargs.items() if v is not None}
        )
    if not isinstance(pretrained, bool | int | None):
        raise ValueError(
            f"pretrained is a {type(pretrained).__name__}: give True, False, a tag or a path, and a state "
            "dict to the model's load_state_dict"
        )
    stored = isinstance(tag, str) and table.find(architecture, tag) is None and store.find(f"{architecture}.{tag}")
    if not stored:
        return entry(pretrained, **kwargs)
    if stored_cfg(stored.name) is None:
        store.verify(stored)  # which says what is wrong
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
            f"{architecture} has no weights {pretrained!r}, and there is no such file or folder: take a tag "
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
    # What is known of the weights of the default tag is not known of these.
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

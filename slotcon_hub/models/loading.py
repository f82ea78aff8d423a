"""Pretrained models by any of their names: of the table, of the local store, or the path of what holds them."""

from pathlib import Path
from typing import Any

import timm
from torch import nn

from slotcon_hub.weights import store, table
from slotcon_hub.weights.reader import dimensions, read_teacher

__all__ = ["load", "load_entry"]


def load(name: str, **kwargs: Any) -> nn.Module:
    """Make a model with pretrained weights.

    Args:
        name: ``<architecture>.<tag>`` of the table or of the local store, a folder that holds one model, or what
            else ``timm.create_model`` takes, such as ``hf-hub:<owner>/<name>``.
        **kwargs: for ``timm.create_model``.

    Raises:
        ValueError: there are no such weights, or they are damaged.
        RuntimeError: they are not to be had.
    """
    architecture, _, tag = name.partition(".")
    folder = Path(name.removeprefix("local-dir:"))
    if table.find(architecture, tag) is None:
        if name in store.names():
            name = f"local-dir:{store.folder(name)}"
        elif folder.is_dir():
            if not (folder / store.CONFIG).is_file():
                raise ValueError(
                    f"the folder {folder} holds no {store.CONFIG}: name the folder of one model, such as "
                    "export/backbone or export/prototypes of a run"
                )
            name = f"local-dir:{folder}"
        elif ":" not in name and (architecture.startswith("slotcon_") or not timm.is_model(architecture)):
            raise ValueError(
                f"there are no weights {name!r}, nor a folder: `slotcon-hub list` shows the names that there are, "
                "and `slotcon-hub import` brings others"
            )
    return timm.create_model(name, pretrained=True, **kwargs)


def load_entry(architecture: str, pretrained: bool | str | Path = False, **kwargs: Any) -> nn.Module:
    """Make a model of an architecture, as an entry point of ``torch.hub`` does.

    Args:
        architecture: one of ours.
        pretrained: False for random weights, True for those of the default tag, or a tag, or the path of a
            checkpoint of any kind that :func:`slotcon_hub.weights.reader.read_teacher` reads. A tag comes first.
        **kwargs: for ``timm.create_model``.

    Raises:
        FileNotFoundError: a folder holds no checkpoint.
        ValueError: there is neither such a tag nor such a path, or the checkpoint does not fit.
        RuntimeError: the weights of the tag are not to be had.
    """
    if isinstance(pretrained, bool):
        return timm.create_model(architecture, pretrained=pretrained, **kwargs)
    known = [row.name for row in table.ROWS] + store.names()
    tags = [name.removeprefix(f"{architecture}.") for name in known if name.startswith(f"{architecture}.")]
    if pretrained in tags:
        return load(f"{architecture}.{pretrained}", **kwargs)
    path = Path(pretrained).expanduser()
    if not path.exists():
        raise ValueError(
            f"{architecture} has no weights {str(pretrained)!r}, and there is no such file or folder: take a tag "
            f"({', '.join(tags) or 'there is none yet'}) or the path of a checkpoint"
        )
    return _load_path(architecture, path, **kwargs)


def _load_path(architecture: str, path: Path, **kwargs: Any) -> nn.Module:
    alone = architecture.removesuffix("_proto")
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
    net = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=cfg, **kwargs)
    for part in net.modules():  # timm would keep the weights twice
        if isinstance(own := getattr(part, "pretrained_cfg", None), dict):
            own.pop("state_dict", None)
    return net

"""A trained SlotCon as what is published: a plain timm backbone, and a prototype model. Always the teacher."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_model_args, save_for_hf
from torch import nn

from slotcon_hub.backbone import averaging
from slotcon_hub.slotcon import SlotCon
from slotcon_hub.slotcon_resnet import SlotConPrototypes, plain_timm

__all__ = ["backbone_model", "export", "prototype_model", "replacing", "save_backbone", "save_model"]

_INPUT = {"input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"}
_INPUT |= {"num_classes", "first_conv", "classifier", "fixed_input_size"}
_PREPROCESSING: dict[str, Any] = {  # of pre-training, whatever the architecture's own weights had
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}


def backbone_model(model: SlotCon) -> nn.Module:
    """The teacher's backbone as a model of timm's own, without a classifier, in eval mode.

    Raises:
        ValueError: the backbone is not a timm model, or has other parameters when it pools.
    """
    return _plain(model.teacher.backbone)[0]


def prototype_model(model: SlotCon, global_pool: str = "avg") -> SlotConPrototypes:
    """The teacher's backbone, projector and prototypes, in eval mode.

    Args:
        model: with a timm backbone.
        global_pool: "" for the dense map of similarities.

    Raises:
        ValueError: the backbone is not a timm model.
    """
    architecture, args = _origin(model.teacher.backbone)
    name = f"{architecture}_proto"
    if not timm.is_model(name):
        name, args = "slotcon_proto", {"backbone": architecture, **args}
    config = model.config
    prototypes: Any = timm.create_model(
        name,
        num_classes=config.num_prototypes,
        global_pool=global_pool,
        hidden_dim=config.hidden_dim,
        out_dim=config.out_dim,
        **args,
    )
    prototypes.load_state_dict(model.teacher.state_dict())
    return prototypes.eval()


def export(model: SlotCon, folder: str | Path, *, input_size: int, trained: str) -> Path:
    """Write ``backbone/`` and ``prototypes/``, each ``model.safetensors``, ``config.json`` and ``README.md``.

    The backbone loads in plain timm, ``timm.create_model("local-dir:<folder>/backbone", pretrained=True)``; the
    prototypes likewise once ``slotcon_hub`` is imported. All is written, or nothing.

    Args:
        model: with a timm backbone.
        folder: replaced if it exists.
        input_size: side of the views it was trained on, in pixels.
        trained: one sentence for the README: on what, and for how long.

    Returns:
        The folder.
    """
    folder = Path(folder)
    with replacing(folder) as staging:
        save_backbone(model.teacher.backbone, staging / "backbone", input_size)
        save_model(prototype_model(model), staging / "prototypes", input_size)
        for part in staging.iterdir():
            config = json.loads((part / "config.json").read_text())
            (part / "README.md").write_text(_readme(config, part.name, trained, model.teacher.returns_map))
    return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a new path, whose file or folder takes the place of another once the block ends without an error.

    Args:
        path: its folder is made; what is there stays as it is after an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        new, old = scratch / "new" / path.name, scratch / "old"
        new.parent.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _origin(backbone: Any) -> tuple[str, dict[str, Any]]:
    """The timm architecture of a backbone, and the arguments it was made with."""
    if not hasattr(backbone, "pretrained_cfg"):
        raise ValueError(f"the backbone, {type(backbone).__name__}, is no timm model: only those can be exported")
    usual = {"num_classes": (0,), "global_pool": ("", "avg"), "in_chans": (3,)}
    args = {k: v for k, v in get_model_args(backbone).items() if v not in usual.get(k, ())}
    return backbone.pretrained_cfg["architecture"], args


def _stated(net: Any) -> dict[str, Any]:
    """The preprocessing in a model's configuration."""
    return {key: net.pretrained_cfg[key] for key in ("input_size", *_PREPROCESSING)}


def _plain(backbone: nn.Module) -> tuple[Any, dict[str, Any]]:
    """The same network as a model of timm's own, pooled by the mean of its map, in eval mode, and its arguments."""
    architecture, args = _origin(backbone)
    plain, plain_args = plain_timm(architecture)
    args = {**plain_args, **args, **averaging(backbone)}
    net = timm.create_model(plain, num_classes=0, **args)
    try:
        net.load_state_dict(backbone.state_dict())
    except RuntimeError:
        raise ValueError(
            f"{plain} cannot be exported, since the pooling that timm gives it has parameters of its own, which "
            "SlotCon does not train: choose another backbone"
        ) from None
    return net.eval(), args


def save_backbone(backbone: Any, folder: Path, input_size: int | None = None) -> None:
    """Write a backbone so that timm loads it without this package, and transformers where it is a usual network.

    Args:
        backbone: a timm model without a classifier; ours come under timm's own names.
        folder: made if it does not exist.
        input_size: as in :func:`save_model`.

    Raises:
        ValueError: it is not a timm model, or has other parameters when it pools.
    """
    net, args = _plain(backbone)
    net.pretrained_cfg = {**net.pretrained_cfg, **_stated(backbone)}
    save_model(net, folder, input_size, args)


def save_model(
    net: Any, folder: Path, input_size: int | None = None, model_args: dict[str, Any] | None = None
) -> None:
    """Write ``model.safetensors`` and ``config.json``, which ``timm.create_model("local-dir:<folder>")`` loads.

    Of the preprocessing alone timm's configuration speaks for our weights; tag, licence and so on are those of
    timm's own weights for this architecture.

    Args:
        net: a timm model.
        folder: made if it does not exist.
        input_size: side in pixels of the views that it was just trained on, which are preprocessed as all are in
            pre-training; by default, size and preprocessing are those that the model itself states.
        model_args: in place of timm's list of the arguments that the model was made with.
    """
    given = _stated(net) if input_size is None else _PREPROCESSING | {"input_size": (3, input_size, input_size)}
    save_for_hf(
        net.to(memory_format=torch.contiguous_format),
        str(folder),
        safe_serialization=True,
        data_config=given | {"input_size": (net.in_chans, *given["input_size"][1:])},
    )
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"] = {k: v for k, v in config["pretrained_cfg"].items() if k in _INPUT}
    if model_args is not None:
        del config["model_args"]
        config |= {"model_args": model_args} if model_args else {}
    path.write_text(json.dumps(config, indent=2) + "\n")
    shutil.copymode(path, folder / "model.safetensors")  # safetensors keeps its files to their owner


def _readme(config: dict[str, Any], kind: str, trained: str, returns_map: bool) -> str:
    if kind == "backbone":
        what = f"A {config['architecture']} backbone ({config['num_features']} channels, no classifier)"
        inside = "forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]"
        dense = "forward_features(x)" if returns_map else inside
        needs, output = "import timm", f"B x C features; model.{dense} gives the map"
    else:
        what = f"A backbone with projector and {config['num_classes']} semantic prototypes"
        needs, output = "import slotcon_hub\nimport timm", "B x K similarities; global_pool='' gives the map"
    return f"""---
library_name: timm
tags:
- slotcon
---
# SlotCon {kind}

{what}, pre-trained without labels by SlotCon (Wen et al., NeurIPS 2022). {trained}

```python
{needs}

model = timm.create_model("local-dir:<this folder>", pretrained=True).eval()
model(x)  # {output}
```
"""

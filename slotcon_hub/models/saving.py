"""Save a timm model as a folder that timm loads: ``model.safetensors`` and ``config.json``."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_model_args, save_for_hf
from torch import nn

from slotcon_hub.files import atomic_write
from slotcon_hub.models.backbone import mean_pooling_args
from slotcon_hub.weights.architectures import plain_timm

__all__ = [
    "pretraining_preprocessing",
    "save_backbone",
    "save_classifier",
    "save_model",
    "timm_architecture",
    "to_plain_timm",
]

_INPUT = {"input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"}
_INPUT |= {"num_classes", "first_conv", "classifier", "fixed_input_size"}
_PREPROCESSING: dict[str, Any] = {
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}


def timm_architecture(backbone: Any) -> tuple[str, dict[str, Any]]:
    """The timm architecture of a backbone, and the arguments it was made with."""
    if not hasattr(backbone, "pretrained_cfg"):
        raise ValueError(f"the backbone, {type(backbone).__name__}, is no timm model, so it cannot be exported")
    usual = {"num_classes": (0,), "global_pool": ("", "avg"), "in_chans": (3,)}
    args = {k: v for k, v in get_model_args(backbone).items() if v not in usual.get(k, ())}
    return backbone.pretrained_cfg["architecture"], args


def pretraining_preprocessing(input_size: int) -> dict[str, Any]:
    """The preprocessing of pre-training on views of this side in pixels, which replaces that of timm's weights."""
    return _PREPROCESSING | {"input_size": (3, input_size, input_size)}


def _own_preprocessing(net: Any) -> dict[str, Any]:
    """The preprocessing in a model's configuration."""
    return {key: net.pretrained_cfg[key] for key in ("input_size", *_PREPROCESSING)}


def to_plain_timm(backbone: nn.Module) -> tuple[Any, dict[str, Any]]:
    """Copy a backbone into timm's own model class, mean-pooled, in eval mode; also return the model's arguments."""
    architecture, args = timm_architecture(backbone)
    name, plain_args = plain_timm(architecture)
    args = {**plain_args, **args, **mean_pooling_args(backbone)}
    net = timm.create_model(name, num_classes=0, **args)
    try:
        net.load_state_dict(backbone.state_dict())
    except RuntimeError:
        raise ValueError(
            f"{name} cannot be exported, since its pooling in timm has parameters that SlotCon does not train: "
            "choose another backbone"
        ) from None
    return net.eval(), args


def save_backbone(backbone: Any, folder: Path, input_size: int | None = None) -> None:
    """Write a backbone that timm loads without this package; transformers too, unless its arguments are unusual.

    Args:
        backbone: a timm model without a classifier; ours are saved under timm's names.
        folder: created if it does not exist.
        input_size: as in :func:`save_model`.

    Raises:
        ValueError: it is not a timm model, or its pooling has parameters.
    """
    net, args = to_plain_timm(backbone)
    net.pretrained_cfg = {**net.pretrained_cfg, **_own_preprocessing(backbone)}
    save_model(net, folder, input_size, args)


def save_classifier(net: Any, folder: Path, labels: Sequence[str]) -> str:
    """Write a fine-tuned classifier that timm loads without this package; its pre-training is not recorded.

    Args:
        net: a timm model.
        folder: replaced if it exists.
        labels: names of its classes, stored as ``pretrained_cfg["label_names"]``; none if they have no names.

    Returns:
        Code that loads it; only a prototype model needs this package.
    """
    name, args = plain_timm(net.pretrained_cfg["architecture"])
    args = args | {k: v for k, v in get_model_args(net).items() if k not in ("num_classes", "global_pool")}
    with atomic_write(folder) as new:
        names = {"label_names": list(labels)} if labels else {}
        save_model(net, new, model_args=args, model_config={"architecture": name, **names})
    ours = "import slotcon_hub\n" if name.startswith("slotcon_") else ""
    return f'{ours}import timm\nmodel = timm.create_model("local-dir:{folder}", pretrained=True).eval()'


def save_model(
    net: Any,
    folder: Path,
    input_size: int | None = None,
    model_args: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
) -> None:
    """Write ``model.safetensors`` and ``config.json``, which ``timm.create_model("local-dir:<folder>")`` loads.

    From timm's configuration only the preprocessing is kept: tag, licence and so on describe timm's own weights.

    Args:
        net: a timm model.
        folder: created if it does not exist.
        input_size: side in pixels of the views of pre-training, stored with the preprocessing of pre-training; by
            default, size and preprocessing of the model's configuration.
        model_args: replaces timm's record of the arguments that the model was created with.
        model_config: entries of ``config.json``, added to timm's or replacing them.
    """
    given = _own_preprocessing(net) if input_size is None else pretraining_preprocessing(input_size)
    save_for_hf(
        net.to(memory_format=torch.contiguous_format),
        str(folder),
        model_config,
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
    shutil.copymode(path, folder / "model.safetensors")  # safetensors makes files that only the owner can read

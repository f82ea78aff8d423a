"""A pretrained model as the file or folder that another library loads, and the lines that load it there."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slotcon_hub.convert import to_detectron2, to_mmseg, to_torchvision
from slotcon_hub.export.onnx import to_onnx
from slotcon_hub.files import atomic_write
from slotcon_hub.models.prototype_model import SlotConPrototypes
from slotcon_hub.models.saving import save_backbone, save_model
from slotcon_hub.weights.architectures import plain_timm

__all__ = ["TARGETS", "Target", "check_free", "save_as"]


@dataclass(frozen=True)
class Target:
    """What a library loads."""

    suffix: str
    """Of the name of a file or folder."""
    write: Callable[..., object]
    """Write a model to a path that is free."""
    usage: str
    """How the library loads ``{path}``, for a backbone that timm calls ``{plain}``."""


def save_as(target: str, net: nn.Module, path: Path, *, force: bool = False, **options: Any) -> str:
    """Write a model for another library; all is written, or nothing.

    Args:
        target: a name in ``TARGETS``. Those but onnx and timm take the backbone out of a prototype model.
        net: a timm model.
        path: of the new file, or folder for timm.
        force: replace what is there.
        **options: for onnx, those of :func:`slotcon_hub.export.onnx.to_onnx`.

    Returns:
        The lines that load it.

    Raises:
        FileExistsError: there is something at the path.
        ImportError: onnx needs libraries that are not installed.
        ValueError: the target cannot hold this network.
        RuntimeError: ONNX Runtime disagrees with torch.
    """
    check_free(path, force)
    with atomic_write(path) as new:
        TARGETS[target].write(net, new, **options)
    plain = plain_timm(_backbone(net).pretrained_cfg["architecture"])[0]
    usage = TARGETS[target].usage.format(path=path, plain=plain, depth=plain.removeprefix("resnet"))
    return f"import slotcon_hub\n{usage}" if target == "timm" and isinstance(net, SlotConPrototypes) else usage


def check_free(path: Path, force: bool) -> None:
    """Refuse a path where something is, unless it is to be replaced.

    Raises:
        FileExistsError: there is something.
    """
    if path.exists() and not force:
        raise FileExistsError(f"{path} is there already: add --force to replace it, or name another with --output")


def _backbone(net: Any) -> Any:
    """Of a prototype model the backbone alone."""
    return net.backbone if isinstance(net, SlotConPrototypes) else net


def _detectron2(net: nn.Module, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(to_detectron2(_backbone(net).state_dict()), file)


def _onnx(net: Any, path: Path, size: int | None = None, opset: int = 18) -> None:
    to_onnx(net, path, size=size or net.pretrained_cfg["input_size"][-1], opset=opset)


def _save(weights: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # which tells of a full disk; torch by a path may not
        torch.save(weights, file)


def _timm(net: Any, path: Path) -> None:
    save = save_model if isinstance(net, SlotConPrototypes) else save_backbone
    save(net, path)


TARGETS = {
    "torchvision": Target(
        ".torchvision.pth",
        lambda net, path: _save(to_torchvision(_backbone(net).state_dict()), path),
        "import torch, torchvision\n"
        "model = torchvision.models.{plain}()\n"
        'model.load_state_dict(torch.load("{path}", weights_only=True), strict=False)  # fc stays random',
    ),
    "detectron2": Target(
        ".detectron2.pkl",
        _detectron2,
        'cfg.MODEL.WEIGHTS = "{path}"\n'
        'cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.MODEL.RESNETS.DEPTH = "RGB", False, {depth}\n'
        "cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]",
    ),
    "mmseg": Target(
        ".mmseg.pth",
        lambda net, path: _save(to_mmseg(_backbone(net).state_dict()), path),
        'weights = dict(type="Pretrained", checkpoint="{path}")\n'
        'model = dict(backbone=dict(type="ResNet", depth={depth}, style="pytorch", init_cfg=weights))',
    ),
    "onnx": Target(
        ".onnx",
        _onnx,
        "import onnxruntime\n"
        'session = onnxruntime.InferenceSession("{path}")\n'
        '(output,) = session.run(None, {{"images": images}})  # float32, B x 3 x H x W, normalised',
    ),
    "timm": Target(".timm", _timm, 'import timm\nmodel = timm.create_model("local-dir:{path}", pretrained=True)'),
}

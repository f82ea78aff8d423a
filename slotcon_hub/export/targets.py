"""Write a pretrained model for another library, and show the code that loads it there."""

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
from slotcon_hub.models.saving import save_backbone, save_classifier, save_model
from slotcon_hub.weights.architectures import plain_timm

__all__ = ["TARGETS", "Target", "check_free", "save_as"]


@dataclass(frozen=True)
class Target:
    """Format of a library."""

    suffix: str
    """Suffix of the file or folder."""
    write: Callable[..., object]
    """Write a model to a new path."""
    usage: str
    """Code that loads ``{path}``; ``{plain}`` is timm's name of the backbone."""


def save_as(target: str, net: nn.Module, path: Path, *, force: bool = False, **options: Any) -> str:
    """Write a model for another library, atomically.

    Args:
        target: a name in ``TARGETS``. All but onnx and timm take the backbone alone.
        net: a timm model.
        path: of the new file, or folder for timm.
        force: replace an existing path.
        **options: for onnx, those of :func:`slotcon_hub.export.onnx.to_onnx`.

    Returns:
        Code that loads it.

    Raises:
        FileExistsError: the path exists.
        ImportError: onnx needs libraries that are not installed.
        ValueError: the target cannot hold this network.
        RuntimeError: ONNX Runtime disagrees with torch.
    """
    check_free(path, force)
    with atomic_write(path) as new:
        TARGETS[target].write(net, new, **options)
    cfg = _backbone(net).pretrained_cfg
    plain = plain_timm(cfg["architecture"])[0]
    depth = plain.removeprefix("resnet")
    width = 64 if depth in ("18", "34") else 256
    mean, std = ([round(255 * value, 3) for value in cfg[key]] for key in ("mean", "std"))
    usage = TARGETS[target].usage.format(path=path, plain=plain, depth=depth, width=width, mean=mean, std=std)
    return f"import slotcon_hub\n{usage}" if target == "timm" and isinstance(net, SlotConPrototypes) else usage


def check_free(path: Path, force: bool) -> None:
    """Check that a path is free or may be replaced.

    Raises:
        FileExistsError: it exists, and ``force`` is not set.
    """
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already: add --force to replace it, or choose another --output")


def _backbone(net: Any) -> Any:
    """The backbone of a prototype model; other models as they are."""
    return net.backbone if isinstance(net, SlotConPrototypes) else net


def _backbone_state(net: Any) -> dict[str, Any]:
    """The weights of a backbone, without prototypes or classifier."""
    backbone = _backbone(net)
    classifier = f"{backbone.pretrained_cfg['classifier']}."
    return {key: value for key, value in backbone.state_dict().items() if not key.startswith(classifier)}


def _detectron2(net: nn.Module, path: Path) -> None:
    if path.suffix != ".pkl":
        raise ValueError(f"Detectron2 would not read {path.name}, since its suffix is not .pkl: add it")
    with path.open("wb") as file:
        pickle.dump(to_detectron2(_backbone_state(net)), file)


def _onnx(net: Any, path: Path, size: int | None = None, opset: int = 18) -> None:
    to_onnx(net, path, size=size or net.pretrained_cfg["input_size"][-1], opset=opset)


def _save(weights: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # reports a full disk, which torch.save to a path may not
        torch.save(weights, file)


def _timm(net: Any, path: Path) -> None:
    if isinstance(net, SlotConPrototypes):
        save_model(net, path)
    elif net.num_classes:
        save_classifier(net, path, net.pretrained_cfg.get("label_names") or ())
    else:
        save_backbone(net, path)


TARGETS = {
    "torchvision": Target(
        ".torchvision.pth",
        lambda net, path: _save(to_torchvision(_backbone_state(net)), path),
        "import torch, torchvision\n"
        "model = torchvision.models.{plain}()\n"
        'model.load_state_dict(torch.load("{path}", weights_only=True), strict=False)  # fc stays random',
    ),
    "detectron2": Target(
        ".detectron2.pkl",
        _detectron2,
        'cfg.MODEL.WEIGHTS = "{path}"\n'
        'cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = "RGB", False\n'
        "cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = {depth}, {width}\n"
        "cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = {mean}, {std}",
    ),
    "mmseg": Target(
        ".mmseg.pth",
        lambda net, path: _save(to_mmseg(_backbone_state(net)), path),
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

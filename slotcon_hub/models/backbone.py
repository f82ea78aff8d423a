"""Any timm model without its head as the backbone f, and its feature map.

Dimensions: B images, C channels, H x W cells, S side of an image in pixels.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from slotcon_hub.models.filled import create_filled

__all__ = [
    "check_trainable",
    "create_backbone",
    "eval_mode",
    "headless_args",
    "intermediate_map",
    "mean_pooling_args",
    "names_weights",
    "probe_feature_map",
]

_SIDE = 64  # side in pixels of the probe image, unless the backbone has a fixed size


def names_weights(name: str) -> bool:
    """Whether the name of a timm model also selects weights, by a tag or a source such as ``hf-hub:``."""
    return "." in name or ":" in name


def create_backbone(name: str, size: int | None = None, *, pretrained: bool = False) -> nn.Module:
    """Make a timm model without its head.

    Args:
        name: of a timm model.
        size: S, for models whose parameters depend on it, such as vision transformers; they take other sizes too
            where timm allows it.
        pretrained: load the weights of this name; else they are random.

    Raises:
        ValueError: timm has no such model, or cannot make it without a head or for this size, or the weights cannot
            be loaded or lack tensors.
    """
    try:
        arguments = headless_args(name, size)
        backbone = timm.create_model(name, **arguments)
    except (RuntimeError, OSError, AssertionError, TypeError) as error:
        raise ValueError(
            f"timm cannot make the backbone {name!r} ({error}): choose one of timm.list_models()"
        ) from None
    if not pretrained:
        return backbone
    try:
        return create_filled(name, **arguments)[0]
    except Exception as error:  # timm raises errors of many kinds
        reason = " ".join((str(error) or type(error).__name__).split())
        raise ValueError(
            f"the weights {name} cannot be loaded ({reason}): connect to the Hub, or name the backbone without "
            "its tag to start from random weights"
        ) from None


def headless_args(name: str, size: int | None = None) -> dict[str, Any]:
    """Arguments with which timm makes a model without its head, as :func:`create_backbone` has it.

    Raises:
        RuntimeError, OSError, AssertionError, TypeError: timm cannot make it.
    """
    arguments: dict[str, Any] = {"num_classes": 0, "global_pool": ""}
    if size is not None:
        with torch.device("meta"):  # only to see what it must know
            model: Any = timm.create_model(name, **arguments)
        if model.pretrained_cfg.get("fixed_input_size"):
            arguments["img_size"] = size
            if "dynamic_img_size" in inspect.signature(type(model)).parameters:
                arguments["dynamic_img_size"] = True
    return arguments


@torch.no_grad()
def probe_feature_map(backbone: nn.Module) -> tuple[int, bool]:
    """Find the feature map, B x C x H x W, of a backbone by a forward of one small image.

    Args:
        backbone: its train or eval mode is restored.

    Returns:
        C, and whether the backbone returns the map itself; if not, take :func:`intermediate_map`.

    Raises:
        ValueError: there is no feature map, or the backbone fails on images of its own size.
    """
    image = _image(backbone)
    with eval_mode(backbone):
        try:
            features = backbone(image)
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            size, reason = " x ".join(map(str, image.shape[2:])), str(error) or type(error).__name__
            raise ValueError(
                f"the backbone cannot take images of {size} pixels ({reason.splitlines()[0]}): take another "
                "size, or another backbone"
            ) from None
        layout = getattr(backbone, "output_fmt", "NCHW")
        if isinstance(features, Tensor) and features.dim() == 4 and layout == "NCHW":
            return features.shape[1], True
        try:
            return intermediate_map(backbone, image).shape[1], False
        except (AttributeError, AssertionError, TypeError):  # no such method, or one without ``norm``
            found = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
    raise ValueError(
        f"the backbone returns {found}: choose one that returns a B x C x H x W map, or whose tokens timm can "
        "reshape to one"
    )


def intermediate_map(backbone: nn.Module, images: Tensor) -> Tensor:
    """B x C x H x W map of the last layer, after the final norm, of timm's token and channels-last models.

    Class and register tokens are left out.
    """
    forward: Any = backbone.forward_intermediates
    return forward(images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)[-1]


def check_trainable(backbone: nn.Module, returns_map: bool) -> None:
    """Check that the feature map depends on all trainable parameters of a backbone.

    Args:
        backbone: parameters without ``requires_grad`` are ignored.
        returns_map: second result of :func:`probe_feature_map`.

    Raises:
        ValueError: some parameters would get no gradient: they would stay random, and DDP would wait for them.
    """
    probe = copy.deepcopy(backbone).train().eval()  # train() clears what some models cache in eval mode
    trained = {name: p for name, p in probe.named_parameters() if p.requires_grad}
    if not trained:
        return
    with torch.enable_grad():
        features = probe(_image(probe)) if returns_map else intermediate_map(probe, _image(probe))
        gradients = torch.autograd.grad(features.sum(), list(trained.values()), allow_unused=True)
    idle = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    if idle:
        named = ", ".join(idle[:3]) + ", ..." * (len(idle) > 3)
        raise ValueError(
            f"the map of the backbone does not depend on {len(idle)} of its {len(trained)} parameters ({named}), "
            "which would stay random: choose another backbone"
        )


def mean_pooling_args(backbone: nn.Module) -> dict[str, Any]:
    """Arguments that make timm mean-pool the feature map of a headless model.

    By default a transformer pools with its class token, which SlotCon does not train, or adds a norm after the
    mean. Models that return a map or mean-pool by default need no arguments.
    """
    if probe_feature_map(backbone)[1]:
        return {}
    accepted = inspect.signature(type(backbone)).parameters
    norms = {norm: False for norm in ("fc_norm", "use_fc_norm") if norm in accepted}
    if not norms and "global_pool" in accepted and accepted["global_pool"].default == "avg":
        return {}
    return {"global_pool": "avg", **norms}


def _image(backbone: nn.Module) -> Tensor:
    """A black image of a size that the backbone takes."""
    channels, *size = get_model_input_config(backbone)["input_size"]
    if not getattr(backbone, "pretrained_cfg", {}).get("fixed_input_size"):
        size = [_SIDE, _SIDE]
    weight = next(backbone.parameters(), torch.zeros(()))
    return weight.new_zeros(1, channels, *size)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and restore the mode of each submodule afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():  # from the whole to its parts
            part.train(training)

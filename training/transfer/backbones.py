"""Backbones that return feature maps: strictly loaded, with a report of loaded and unused tensors."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from slotcon_hub.models.filled import create_filled
from slotcon_hub.models.loading import name_for_timm
from slotcon_hub.models.saving import timm_architecture

__all__ = ["MAPS", "architecture_of", "channels_first", "create_maps"]

MAPS = (-4, -3, -2, -1)  # without the stem's map, if there are five


def create_maps(
    name: str, *, pretrained: bool, output_stride: int | None = None, **kwargs: Any
) -> tuple[Any, list[str]]:
    """Create a timm model that returns feature maps, by default its last four.

    Args:
        name: see :func:`slotcon_hub.models.loading.name_for_timm`.
        pretrained: False for random weights.
        output_stride: of the last map in pixels, for models with this option; others keep their own.
        **kwargs: of ``timm.create_model``, such as ``out_indices`` for other maps.

    Returns:
        The model, and sentences that report loaded and unused tensors.

    Raises:
        ValueError: there is no such model, it has no weights or too few maps, or tensors are missing.
    """
    options = {"features_only": True, "out_indices": MAPS, **kwargs}
    try:
        model, unused = _create(name_for_timm(name), pretrained, output_stride, **options)
    except (RuntimeError, OSError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise ValueError(f"{name} could not be loaded as a backbone: {' '.join(str(error).split())}") from None
    if not pretrained:
        return model, [f"backbone: {name.partition('.')[0]} with random weights"]
    own = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    lines = [f"backbone: all {len(own)} tensors loaded from {name}"]
    if unused:
        lines.append(f"unused tensors of {name}, besides a classifier: {', '.join(sorted(unused)[:6])}")
    return model, lines


def architecture_of(backbone: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments with which :func:`create_maps` makes the same network without its weights.

    A configuration that holds them stays valid where there is no such folder, store or tag.
    """
    architecture, args = timm_architecture(backbone)
    return architecture, {k: v for k, v in args.items() if k not in ("features_only", "out_indices")}


def channels_first(backbone: Any, maps: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the maps of a backbone as B x C x H x W; some, such as Swin's, have their channels last."""
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        return [one.permute(0, 3, 1, 2) for one in maps]
    return maps


def _create(name: str, pretrained: bool, output_stride: int | None, **options: Any) -> tuple[Any, list[str]]:
    if output_stride is not None:
        try:
            return create_filled(name, pretrained, output_stride=output_stride, **options)
        except TypeError:  # no output_stride option; may have this stride by default
            pass
    return create_filled(name, pretrained, **options)

"""Backbones that return feature maps: strictly loaded, with a report of loaded and unused tensors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import timm
from torch import Tensor, nn

from slotcon_hub.models.loading import name_for_timm

__all__ = ["MAPS", "Load", "channels_first", "check_filled", "create_maps", "recording_loads"]

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
    try:
        with recording_loads() as loads:
            model = _create(
                name_for_timm(name), output_stride, pretrained=pretrained, **{"out_indices": MAPS, **kwargs}
            )
    except (RuntimeError, OSError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise ValueError(f"{name} could not be loaded as a backbone: {' '.join(str(error).split())}") from None
    if not pretrained:
        return model, [f"backbone: {name.partition('.')[0]} with random weights"]
    unused = check_filled(name, model, loads)
    own = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    lines = [f"backbone: all {len(own)} tensors loaded from {name}"]
    if unused:
        lines.append(f"unused tensors of {name}, besides a classifier: {', '.join(sorted(unused)[:6])}")
    return model, lines


def channels_first(backbone: Any, maps: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the maps of a backbone as B x C x H x W; some, such as Swin's, have their channels last."""
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        return [one.permute(0, 3, 1, 2) for one in maps]
    return maps


def _create(name: str, output_stride: int | None, **options: Any) -> Any:
    if output_stride is not None:
        try:
            return timm.create_model(name, features_only=True, output_stride=output_stride, **options)
        except TypeError:  # no output_stride option; may have this stride by default
            pass
    return timm.create_model(name, features_only=True, **options)


@dataclass(frozen=True)
class Load:
    """A call of ``load_state_dict``."""

    module: nn.Module
    missing: list[str]
    unexpected: list[str]


@contextmanager
def recording_loads() -> Iterator[list[Load]]:
    """Record each ``load_state_dict``.

    timm loads non-strictly if the number of classes differs, and only logs missing keys.
    """
    loads: list[Load] = []
    original = nn.Module.load_state_dict

    def load(self: nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, state, *args, **kwargs)
        loads.append(Load(self, list(result.missing_keys), list(result.unexpected_keys)))
        return result

    with mock.patch.object(nn.Module, "load_state_dict", load):
        yield loads


def check_filled(name: str, model: nn.Module, loads: list[Load]) -> list[str]:
    """Check that pretrained weights filled all tensors of a model; its own names may be others than those loaded.

    Args:
        name: of the weights, for errors.
        model: made of the module that was loaded, or a part of it.
        loads: of :func:`recording_loads`, while the model was made.

    Returns:
        Names of tensors without use.

    Raises:
        ValueError: there were no weights, or they lack a tensor.
    """
    if not loads:
        raise ValueError(f"{name} has no weights: give a name with weights, a run's folder, or --scratch")
    tensors = {key: value for key, value in _tensors(loads[-1].module) if not key.endswith("num_batches_tracked")}
    own = {id(value) for _, value in _tensors(model)}
    if absent := sorted(key for key in loads[-1].missing if key in tensors and id(tensors[key]) in own):
        raise ValueError(
            f"the weights {name} lack {len(absent)} tensors, such as {absent[0]}: choose other weights"
        )
    return loads[-1].unexpected


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()

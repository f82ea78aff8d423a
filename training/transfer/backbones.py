"""Strict loading of pretrained backbones, with a report of loaded and unused tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import timm
from torch import nn

from slotcon_hub.models.loading import name_for_timm

__all__ = ["create_maps"]

MAPS = (-4, -3, -2, -1)  # without the stem's map, if there are five


def create_maps(name: str, *, pretrained: bool) -> tuple[Any, list[str]]:
    """Create a timm model that returns its last four feature maps.

    Args:
        name: see :func:`slotcon_hub.models.loading.name_for_timm`.
        pretrained: False for random weights.

    Returns:
        The model, and sentences that report loaded and unused tensors.

    Raises:
        ValueError: there is no such model, it has no weights or fewer than four maps, or tensors are missing.
    """
    try:
        with _recording_loads() as loads:
            model: Any = timm.create_model(
                name_for_timm(name), pretrained=pretrained, features_only=True, out_indices=MAPS
            )
    except (RuntimeError, OSError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise ValueError(f"{name} could not be loaded as a backbone: {' '.join(str(error).split())}") from None
    if not pretrained:
        return model, [f"backbone: {name.partition('.')[0]} with random weights"]
    if not loads:
        raise ValueError(f"{name} has no weights: give a name with weights, a run's folder, or --scratch")
    missing, unused = loads[-1]
    own = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    if absent := sorted(key for key in missing if key in own):
        raise ValueError(
            f"the weights {name} lack {len(absent)} tensors, such as {absent[0]}: choose other weights"
        )
    lines = [f"backbone: all {len(own)} tensors loaded from {name}"]
    if unused:
        lines.append(f"unused tensors of {name}, besides a classifier: {', '.join(sorted(unused)[:6])}")
    return model, lines


@contextmanager
def _recording_loads() -> Iterator[list[tuple[list[str], list[str]]]]:
    """Record missing and unexpected keys of each ``load_state_dict``.

    timm loads non-strictly if the number of classes differs, and only logs such keys.
    """
    loads = []
    original = nn.Module.load_state_dict

    def load(self: nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, state, *args, **kwargs)
        loads.append((list(result.missing_keys), list(result.unexpected_keys)))
        return result

    with mock.patch.object(nn.Module, "load_state_dict", load):
        yield loads

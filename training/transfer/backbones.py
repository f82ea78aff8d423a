"""Backbones with their pretrained weights, strictly: what was loaded, and what was not, is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import timm
from torch import nn

from slotcon_hub.models.loading import name_for_timm

__all__ = ["create_maps"]

MAPS = (-4, -3, -2, -1)  # a stem's map comes first where there are five


def create_maps(name: str, *, pretrained: bool) -> tuple[Any, list[str]]:
    """Make a timm model that returns its last four maps.

    Args:
        name: as for :func:`slotcon_hub.models.loading.name_for_timm`.
        pretrained: load the weights of this name, in place of random ones.

    Returns:
        The model, and sentences on what was loaded and what was not.

    Raises:
        ValueError: there is no such model, it has no weights or no four maps, or the weights do not fill it.
    """
    try:
        with _recording_loads() as loads:
            model: Any = timm.create_model(
                name_for_timm(name), pretrained=pretrained, features_only=True, out_indices=MAPS
            )
    except (RuntimeError, OSError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise ValueError(f"{name} could not be made as a backbone: {' '.join(str(error).split())}") from None
    if not pretrained:
        return model, [f"backbone: {name.partition('.')[0]} with random weights"]
    if not loads:
        raise ValueError(f"{name} names no weights: give a name with weights, a run's folder, or --scratch")
    missing, unused = loads[-1]
    own = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    if absent := sorted(key for key in missing if key in own):
        raise ValueError(f"the weights {name} lack {len(absent)} tensors, such as {absent[0]}: take others")
    lines = [f"backbone: {len(own)} tensors of {name} loaded, none is random"]
    if unused:
        lines.append(f"left out of {name}, beside a classifier: {', '.join(sorted(unused)[:6])}")
    return model, lines


@contextmanager
def _recording_loads() -> Iterator[list[tuple[list[str], list[str]]]]:
    """Note the names that each ``load_state_dict`` inside missed, and those that it had no use for.

    timm loads without strictness where the number of classes is another, and tells its log alone.
    """
    loads = []
    original = nn.Module.load_state_dict

    def load(self: nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, state, *args, **kwargs)
        loads.append((list(result.missing_keys), list(result.unexpected_keys)))
        return result

    with mock.patch.object(nn.Module, "load_state_dict", load):
        yield loads

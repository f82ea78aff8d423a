"""Pretrained weights that fill a model: timm only logs the tensors that weights lack."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import timm
from torch import Tensor, nn

from slotcon_hub.weights.hub import explain_download

__all__ = ["create_filled"]

_PATCHED = threading.Lock()


def create_filled(name: str, pretrained: bool = True, **kwargs: Any) -> tuple[Any, list[str]]:
    """Create a timm model, with pretrained weights for all of its tensors or with random ones.

    timm loads without strictness if the number of classes differs from that of the weights, such as 0, and leaves
    tensors that the weights lack at their random initial values.

    Args:
        name: of a model and its weights, for ``timm.create_model``.
        pretrained: False for random weights.
        **kwargs: of ``timm.create_model``.

    Returns:
        The model, and the names of pretrained tensors without use.

    Raises:
        ValueError: there are no weights, or they lack a tensor.
        RuntimeError: the weights cannot be downloaded.
        RuntimeError, OSError, ValueError, TypeError: timm cannot make the model.
    """
    if not pretrained:
        return timm.create_model(name, **kwargs), []
    with _recording() as loads, explain_download(name):
        model = timm.create_model(name, pretrained=True, **kwargs)
    if not loads:
        if getattr(model, "pretrained_cfg", {}).get("custom_load"):  # such as JAX arrays: all of them, or an error
            return model, []
        raise ValueError(f"{name} has no weights: give a name with weights, or the folder of a run")
    last = loads[-1]
    # The model's own names may be others, such as those of a list of maps, and it may have fewer tensors.
    own = {id(value) for _, value in _tensors(model)}
    loaded = {key: value for key, value in _tensors(last.module) if not key.endswith("num_batches_tracked")}
    absent = sorted(key for key in last.missing if key in loaded and id(loaded[key]) in own)
    # The last norm of a transformer is called fc_norm if it pools, and starts as ones and zeros if it does not.
    if absent := [key for key in absent if f"fc_{key}" not in last.unexpected]:
        weights = name.removeprefix("local-dir:")
        raise ValueError(
            f"the weights {weights} lack {len(absent)} tensors, such as {absent[0]}: choose other weights"
        )
    return model, last.unexpected


@dataclass(frozen=True)
class _Load:
    """A call of ``load_state_dict``."""

    module: nn.Module
    missing: list[str]
    unexpected: list[str]


@contextmanager
def _recording() -> Iterator[list[_Load]]:
    """Record each ``load_state_dict`` of this thread; one thread at a time, since all share the patched method."""
    loads: list[_Load] = []
    owner = threading.get_ident()
    with _PATCHED:
        original = nn.Module.load_state_dict

        def load(self: nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, state, *args, **kwargs)
            if threading.get_ident() == owner:
                loads.append(_Load(self, list(result.missing_keys), list(result.unexpected_keys)))
            return result

        with mock.patch.object(nn.Module, "load_state_dict", load):
            yield loads


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()

"""Peak bytes of live tensors during a computation: deterministic, on any device."""

import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Counts the storages created by operations in the block, and those of given modules and tensors.

    Temporary buffers inside kernels, and rounding and fragmentation of the allocator, are not counted: a GPU needs
    some per cent more.
    """

    def __init__(self, *held: nn.Module | Tensor) -> None:
        """Start with the parameters, gradients and buffers of ``held``."""
        super().__init__()
        self.live = self.peak = 0
        """Current and peak bytes."""
        self._known: Any = WeakIdKeyDictionary()
        for thing in held:
            tensors = [thing] if isinstance(thing, Tensor) else [*thing.parameters(), *thing.buffers()]
            for tensor in tensors:
                self._see(tensor)
                if tensor.grad is not None:
                    self._see(tensor.grad)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        weakref.finalize(storage, self._forget, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, size: int) -> None:
        self.live -= size

"""Features of many images in one file of safetensors, which processes write and resume row by row.

Dimensions: N images, C channels, h x w cells of a map.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["DTYPES", "FeatureFile", "FeatureWriter"]

DTYPES = {"float32": torch.float32, "float16": torch.float16}
_CODES = {torch.float32: "F32", torch.float16: "F16"}
_MISSING, _READ, _UNREADABLE = 0, 1, 2  # states of a row


class FeatureWriter:
    """A file that takes the features of images in any order; what is missing is known whenever it ends.

    It is PATH.partial until it is complete. Several processes may write to it, each its own rows.
    """

    def __init__(self, path: Path, names: Sequence[str], shape: Sequence[int], config: dict[str, Any]) -> None:
        """Describe the file.

        Args:
            path: of the complete file.
            names: of the N images, in the order of the rows.
            shape: of the features of an image: C, or C, h, w.
            config: what decides the features, values for JSON; its "dtype" is one of ``DTYPES``.
        """
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        dtype = DTYPES[config["dtype"]]
        self._number, self._row = len(names), math.prod(shape) * dtype.itemsize
        self._dtype, size = dtype, len(names) * self._row
        header = {
            "__metadata__": {"names": json.dumps(list(names)), "config": json.dumps(config)},
            "features": {"dtype": _CODES[dtype], "shape": [len(names), *shape], "data_offsets": [0, size]},
            "state": {"dtype": "U8", "shape": [len(names)], "data_offsets": [size, size + len(names)]},
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._header = len(text).to_bytes(8, "little") + text
        self._states = len(self._header) + size

    def create(self) -> int:
        """Make the file, or find the one that an interrupted command left; one process does it for all.

        Returns:
            How many rows are written already.

        Raises:
            ValueError: what was left is of other images, or of other settings.
            OSError: there is no room.
        """
        if self.partial.exists():
            with self.partial.open("rb") as file:
                if file.read(len(self._header)) != self._header:
                    raise ValueError(
                        f"{self.partial} was begun with other images or settings: go on with those, or remove it"
                    )
            return int((self._read_states() != _MISSING).sum())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.partial.with_name(f"{self.partial.name}.new")
        try:
            with scratch.open("wb") as file:
                file.write(self._header)
                file.truncate(self._states + self._number)
                if hasattr(os, "posix_fallocate"):  # or a full disk is met hours later
                    os.posix_fallocate(file.fileno(), 0, self._states + self._number)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            wanted = f"{(self._states + self._number) / 1e9:.3f} GB"
            raise OSError(f"{self.path} cannot be made, of {wanted} ({error.strerror or error})") from None
        scratch.replace(self.partial)
        return 0

    def _read_states(self) -> np.ndarray:
        return np.fromfile(self.partial, np.uint8, self._number, offset=self._states)

    def pending(self, batches: Sequence[range]) -> list[range]:
        """Those of some batches of rows that are not written as a whole."""
        states = self._read_states()
        return [batch for batch in batches if (states[batch.start : batch.stop] == _MISSING).any()]

    def unreadable(self) -> list[int]:
        """The images that could not be read, also by earlier calls."""
        return np.flatnonzero(self._read_states() == _UNREADABLE).tolist()

    def write(self, numbers: Sequence[int], features: Tensor, unreadable: Sequence[int] = ()) -> None:
        """Write the rows of some images.

        Args:
            numbers: of the images.
            features: a row for each.
            unreadable: numbers of images that have no features: their rows stay zero.

        Raises:
            OSError: the disk fails.
        """
        rows = features.to("cpu", self._dtype).contiguous().flatten(1).view(torch.uint8).numpy()
        with self.partial.open("r+b", buffering=0) as file:
            for number, row in zip(numbers, rows, strict=True):
                file.seek(len(self._header) + number * self._row)
                file.write(row.tobytes())
            for number, state in [(n, _READ) for n in numbers] + [(n, _UNREADABLE) for n in unreadable]:
                file.seek(self._states + number)
                file.write(bytes([state]))

    def finish(self) -> None:
        """Give the complete file its name.

        Raises:
            RuntimeError: rows are missing.
        """
        if missing := int((self._read_states() == _MISSING).sum()):
            raise RuntimeError(f"{self.partial} lacks {missing} of {self._number} images: run the command again")
        self.partial.replace(self.path)


class FeatureFile:
    """A complete file of features, of which only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            ValueError: it is not such a file, or not complete.
        """
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                self.names: list[str] = json.loads(facts["names"])
                self.config: dict[str, Any] = json.loads(facts["config"])
                self.shape: tuple[int, ...] = tuple(file.get_slice("features").get_shape()[1:])
                states = file.get_tensor("state")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            raise ValueError(f"{path} is no file of `slotcon-hub embed` ({reason}): make one") from None
        if (states == _MISSING).any():
            raise ValueError(f"{path} is not complete: run its `slotcon-hub embed` again")
        self._rows = {name: row for row, name in enumerate(self.names) if states[row] == _READ}
        self.unreadable = set(self.names) - set(self._rows)
        self._features: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Each worker opens the file for itself."""
        return {**self.__dict__, "_features": None}

    def read(self, names: Sequence[str]) -> Tensor:
        """Features of some images, float32 with a row for each.

        Raises:
            ValueError: one is not there; it is named.
        """
        if absent := [name for name in names if name not in self._rows]:
            raise ValueError(
                f"{self.path} has no features of {absent[0]}: it has those of images below "
                f"{self.config['images']}; embed the folder that --data names"
            )
        if self._features is None:
            self._features = safe_open(self.path, "pt").get_slice("features")
        return torch.cat([self._features[row : row + 1] for row in map(self._rows.__getitem__, names)]).float()

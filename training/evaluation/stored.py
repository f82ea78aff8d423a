"""Feature files of ``slotcon-hub embed``, usable instead of a model.

Dimensions: N images, C channels, h x w cells of a map, S side of an image in pixels.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from slotcon_hub.concepts.feature_file import FeatureFile
from slotcon_hub.distributed import shard_batches
from slotcon_hub.images import printable
from slotcon_hub.models.maps import load_map
from training.data.images import UnreadableImage
from training.data.masks import CenterSquare, LabeledImages

__all__ = ["StoredMaps", "StoredPooled", "StoredSamples", "is_stored", "load_maps"]


def is_stored(name: str) -> bool:
    """Whether an entry of --models is a feature file."""
    return name.endswith(".safetensors")


def _open(name: str, kind: str, pretrained: bool) -> FeatureFile:
    if not pretrained:
        raise ValueError(f"--baseline needs a model, but {name} is a feature file: leave out one of the two")
    file = FeatureFile(Path(name))
    if file.config["kind"] != kind:
        option = "with --dense" if kind == "dense" else "without --dense"
        raise ValueError(f"{name} holds {file.config['kind']} features: run slotcon-hub embed {option}")
    return file


class StoredMaps:
    """Feature maps of a file, with the interface of :class:`slotcon_hub.models.maps.MapModel`."""

    def __init__(self, name: str, size: int, *, pretrained: bool = True) -> None:
        """Open the file.

        Raises:
            ValueError: not a file of feature maps of this size, or ``pretrained`` is False.
        """
        self.file = _open(name, "dense", pretrained)
        if (side := self.file.config["crop"]) != size:
            raise ValueError(f"{name} holds the maps of {side} x {side} pixels, not {size}: give --size {side}")
        self.channels, *self.map = self.file.shape

    def to(self, device: Any) -> "StoredMaps":
        """Do nothing: maps are moved to the device batch by batch."""
        return self

    def cells(self, size: int) -> tuple[int, int]:
        """Return h and w of the maps."""
        return self.map[0], self.map[1]

    def describe(self, size: int) -> dict[str, Any]:
        """Return the configuration stored in the file."""
        return self.file.config


class StoredSamples(Dataset[tuple[Tensor, Tensor]]):
    """Feature maps, float32 C x h x w, with masks, uint8 S x S, without reading the images."""

    def __init__(self, images: LabeledImages, maps: StoredMaps, root: Path) -> None:
        """Match images with the file by their paths relative to ``root``."""
        self.files = images.files
        self.images, self.maps, self.root = images, maps, root

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Read a map and a mask.

        Raises:
            UnreadableImage: the image could not be read when the file was made, or the mask cannot be.
            ValueError: the image is not in the file.
        """
        path, mask = self.files[index]
        name = printable(os.path.relpath(path, self.root))
        if name in self.maps.file.unreadable:
            raise UnreadableImage(f"{name} cannot be read, according to {self.maps.file.path}")
        crop = self.images.transform
        assert isinstance(crop, CenterSquare)
        return self.maps.file.read([name])[0], crop.labels(self.images.read_mask(mask))


class StoredPooled:
    """Pooled features of a file."""

    def __init__(self, name: str, *, pretrained: bool = True) -> None:
        """Open the file.

        Raises:
            ValueError: not a file of pooled features, or ``pretrained`` is False.
        """
        self.file = _open(name, "pooled", pretrained)
        self.head_hidden_size = self.file.shape[0]

    def describe(self) -> dict[str, Any]:
        """Return channels and the configuration stored in the file."""
        return {"channels": self.head_hidden_size, "preprocessing": self.file.config}

    def to(self, device: Any) -> "StoredPooled":
        """Do nothing: features stay on the CPU."""
        return self

    def batches(self, paths: list[str] | None, root: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield indices in ``paths`` of readable images and their features, float32, a thousand at a time.

        Raises:
            ValueError: the images are in tables, not in files, or one is not in the feature file.
        """
        if paths is None:
            raise ValueError(
                f"{self.file.path} has features of files, but {root} holds tables: give --models a model"
            )
        for batch in shard_batches(len(paths), 1000, 0, 1):
            names = {i: printable(os.path.relpath(paths[i], Path(root).expanduser())) for i in batch}
            kept = {i: name for i, name in names.items() if name not in self.file.unreadable}
            if kept:
                yield torch.tensor([*kept]), self.file.read([*kept.values()])


def load_maps(name: str, size: int, *, pretrained: bool = True) -> Any:
    """Load a timm model that returns feature maps, or the maps of a feature file."""
    load: type[StoredMaps] | Any = StoredMaps if is_stored(name) else load_map
    return load(name, size, pretrained=pretrained)

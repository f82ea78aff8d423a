"""Features that ``slotcon-hub embed`` has written, in the place of a model that makes them anew.

Dimensions: N images, C channels, h x w cells of a map, S side of an image in pixels.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from slotcon_hub.concepts.feature_file import FeatureFile
from slotcon_hub.images import printable
from slotcon_hub.models.maps import load_map
from training.data.images import UnreadableImage
from training.data.masks import CenterSquare, LabeledImages

__all__ = ["StoredMaps", "StoredPooled", "StoredSamples", "is_stored", "load_maps"]


def is_stored(name: str) -> bool:
    """Whether what --models names is a file of features."""
    return name.endswith(".safetensors")


def _open(name: str, kind: str, pretrained: bool) -> FeatureFile:
    if not pretrained:
        raise ValueError(f"--baseline measures models anew, which {name} cannot: leave out one of them")
    file = FeatureFile(Path(name))
    if file.config["kind"] != kind:
        option = "with --dense" if kind == "dense" else "without --dense"
        raise ValueError(f"{name} holds {file.config['kind']} features: make a file {option}")
    return file


class StoredMaps:
    """Maps of a file, with what the protocols ask of a :class:`slotcon_hub.models.maps.MapModel`."""

    def __init__(self, name: str, size: int, *, pretrained: bool = True) -> None:
        """Open the file.

        Raises:
            ValueError: it is none, or of pooled features or another size, or the model is to have random weights.
        """
        self.file = _open(name, "dense", pretrained)
        if (side := self.file.config["crop"]) != size:
            raise ValueError(f"{name} holds the maps of {side} x {side} pixels, not {size}: give --size {side}")
        self.channels, *self.map = self.file.shape

    def to(self, device: Any) -> "StoredMaps":
        """Maps go to their device batch by batch."""
        return self

    def cells(self, size: int) -> tuple[int, int]:
        """h and w of the maps."""
        return self.map[0], self.map[1]

    def describe(self, size: int) -> dict[str, Any]:
        """What decided the features, as the file says."""
        return self.file.config


class StoredSamples(Dataset[tuple[Tensor, Tensor]]):
    """The maps of labelled images, float32 C x h x w, with their masks, uint8 S x S; no image is read."""

    def __init__(self, images: LabeledImages, maps: StoredMaps, root: Path) -> None:
        """Find the images, whose names in the file are those below ``root``."""
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
            raise UnreadableImage(f"{name} cannot be read, as {self.maps.file.path} says")
        crop = self.images.transform
        assert isinstance(crop, CenterSquare)
        return self.maps.file.read([name])[0], crop.labels(self.images.read_mask(mask))


class StoredPooled:
    """Pooled features of a file."""

    def __init__(self, name: str, *, pretrained: bool = True) -> None:
        """Open the file.

        Raises:
            ValueError: it is none, or of maps, or the model is to have random weights.
        """
        self.file = _open(name, "pooled", pretrained)
        self.head_hidden_size = self.file.shape[0]

    def describe(self) -> dict[str, Any]:
        """What decided the features, as the file says."""
        return {"channels": self.head_hidden_size, "preprocessing": self.file.config}

    def to(self, device: Any) -> "StoredPooled":
        """Features are on the CPU."""
        return self

    def values(self, paths: list[str] | None, root: str) -> tuple[Tensor, Tensor]:
        """Features of files below a folder, N x C, and which of the paths these are, N; others cannot be read.

        Raises:
            ValueError: the images are in tables, not in files, or one is not in the file of features.
        """
        if paths is None:
            raise ValueError(
                f"{self.file.path} has features of files, but {root} holds tables: give --models a model"
            )
        names = [printable(os.path.relpath(path, Path(root).expanduser())) for path in paths]
        kept = [i for i, name in enumerate(names) if name not in self.file.unreadable]
        return self.file.read([names[i] for i in kept]), torch.tensor(kept)


def load_maps(name: str, size: int, *, pretrained: bool = True) -> Any:
    """The map of a timm model, or the maps of a file."""
    load: type[StoredMaps] | Any = StoredMaps if is_stored(name) else load_map
    return load(name, size, pretrained=pretrained)

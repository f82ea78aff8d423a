"""Files of images: which a folder holds, and how they are decoded."""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

__all__ = ["EncodedImage", "ImageFiles", "decode", "files_below"]

SUFFIXES: tuple[str, ...] = (".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
if features.check("avif"):
    SUFFIXES = (".avif", *SUFFIXES)


class ImageFiles:
    """All files below some folders with an ending in ``SUFFIXES``, in order of their paths.

    Links to folders are followed. What is hidden is left out: macOS puts a ``._x.jpg`` beside an ``x.jpg``.
    """

    def __init__(self, *folders: Path, listed: Iterable[str] | None = None) -> None:
        """List the files.

        Args:
            folders: to search at any depth.
            listed: what :func:`files_below` yields for them, where that is known already.

        Raises:
            ValueError: a folder does not exist or cannot be listed, or they hold no image.
        """
        for folder in folders:
            if not folder.is_dir():
                raise ValueError(f"there is no folder {folder}: name a folder of images")
        self._folders = tuple(os.path.join(folder, "") for folder in folders)
        files = listed if listed is not None else files_below(*folders)
        self.paths = sorted(path for path in files if path.lower().endswith(SUFFIXES))
        if not self.paths:
            places = " and ".join(map(str, folders))
            raise ValueError(f"{places} holds no {', '.join(SUFFIXES)} file, at any depth: name another folder")

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path of a file."""
        return self.paths[index]

    def read(self, index: int) -> bytes:
        """Bytes of a file."""
        return Path(self.paths[index]).read_bytes()

    def digest(self) -> str:
        """SHA-256 of the paths below their folders, in their order: the same wherever the folders are."""
        names = (path.removeprefix(next(f for f in self._folders if path.startswith(f))) for path in self.paths)
        return hashlib.sha256(os.fsencode("\0".join(names))).hexdigest()


def files_below(*folders: Path) -> Iterator[str]:
    """Yield the paths of files that are not hidden; a folder that several links lead to is entered once.

    Raises:
        ValueError: a folder cannot be listed; its images would be missing without a word.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise ValueError(f"there is no folder {folder}: name a folder of images")
    entered = set()
    waiting = [os.fspath(folder) for folder in reversed(folders)]
    while waiting:
        place, inner = waiting.pop(), []
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "@eaDir":  # thumbnails of a Synology NAS
                        continue
                    if entry.is_dir():
                        inner.append(entry.path)
                    else:
                        yield entry.path
        except OSError as error:
            raise ValueError(f"{place} cannot be listed ({error.strerror}): make it readable, or move it") from None
        waiting += sorted(inner, reverse=True)


class EncodedImage:
    """An encoded image of which the header has been read: its pixels are yet to be decoded."""

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            OSError: it is no image, or so large (by Pillow's limit) that it may be a decompression bomb.
        """
        self._data = data
        with _errors_of_pillow():
            self._image = Image.open(io.BytesIO(data))
        self.height, self.width = self._image.height, self._image.width

    def decode(self, *, upright: bool = False, reduction: int = 1) -> Tensor:
        """Decode an image of any colour mode to RGB, uint8 3 x H x W; once only.

        Transparency is dropped, 16 bits a channel become their upper 8, and of an animation the first frame is
        taken.

        Args:
            upright: turn it as its EXIF says, to be looked at; left as it is, as usual in pre-training.
            reduction: 2, 4 or 8 to average squares of so many pixels a side, what is left over at the right and
                at the bottom likewise. A JPEG does this while it is decoded, from fewer of its cosines.

        Raises:
            OSError: it is damaged.
        """
        with _errors_of_pillow(), self._image as image:
            jpeg = image.format in ("JPEG", "MPO")  # cameras write MPO: several JPEGs, the image first
            if jpeg and reduction == 1:
                # The fast way. Only JPEGs take it: a damaged PNG ends torchvision in a segmentation fault.
                with contextlib.suppress(RuntimeError):
                    data = torch.frombuffer(self._data, dtype=torch.uint8)
                    return decode_jpeg(data, ImageReadMode.RGB, apply_exif_orientation=upright)
            if jpeg and min(image.size) >= 2 * reduction:
                image.draft(None, (image.width // reduction, image.height // reduction))
                reduction = 1
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            image = image.convert("RGB")
            if reduction > 1:
                image = image.reduce(reduction)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def decode(data: bytes, *, upright: bool = False, reduction: int = 1) -> Tensor:
    """Decode an image in one go: see :class:`EncodedImage`, which raises OSError for whatever is wrong."""
    return EncodedImage(data).decode(upright=upright, reduction=reduction)


@contextlib.contextmanager
def _errors_of_pillow() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnidentifiedImageError:  # whose message is an address in memory
            raise OSError("cannot identify image file: it is of no format that Pillow reads") from None
        except Exception as error:  # Pillow raises whatever its parsers stumble over
            raise OSError(f"{type(error).__name__}: {error}") from None

"""Image files: finding them in folders, and decoding them."""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

__all__ = [
    "SUFFIXES",
    "EncodedImage",
    "ImageFiles",
    "decode",
    "files_below",
    "limit_aspect_ratio",
    "list_folder",
    "names_digest",
    "pixel_limit",
    "printable",
    "resize_and_center_crop",
]

SUFFIXES: tuple[str, ...] = (".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
if "avif" in features.modules and features.check("avif"):
    SUFFIXES = (".avif", *SUFFIXES)

MAX_PIXELS = "SLOTCON_HUB_MAX_PIXELS"
"""Environment variable: largest number of pixels of an image; by default Pillow's limit, about 179 million."""


class ImageFiles:
    """All files below some folders with a suffix in ``SUFFIXES``, sorted by path.

    Links to folders are followed. Hidden files are left out: macOS puts a ``._x.jpg`` beside an ``x.jpg``.
    """

    def __init__(self, *folders: Path, listed: Iterable[str] | None = None) -> None:
        """List the files.

        Args:
            folders: to search at any depth.
            listed: the paths that :func:`files_below` yields for them, if known already.

        Raises:
            ValueError: a folder does not exist or cannot be listed, or they hold no image; or ``MAX_PIXELS`` is no
                number.
        """
        pixel_limit()
        self.folders = folders
        files = listed if listed is not None else files_below(*folders)
        self.paths = sorted(path for path in files if path.lower().endswith(SUFFIXES))
        if not self.paths:
            places = " and ".join(map(str, folders))
            raise ValueError(f"{places} holds no {', '.join(SUFFIXES)} file, at any depth: name another folder")

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Printable path of a file."""
        return printable(self.paths[index])

    def read(self, index: int) -> bytes:
        """Bytes of a file."""
        return Path(self.paths[index]).read_bytes()

    def digest(self) -> str:
        """SHA-256 of the sorted paths, relative to their folders."""
        folders = [os.path.join(folder, "") for folder in self.folders]
        names = (path.removeprefix(next(f for f in folders if path.startswith(f))) for path in self.paths)
        return names_digest(names)


def names_digest(names: Iterable[str]) -> str:
    """SHA-256 of names in their order, in hexadecimal; names of files need not be UTF-8."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def printable(path: str | os.PathLike[str]) -> str:
    """A path as valid UTF-8: other bytes become escapes such as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def limit_aspect_ratio(image: Tensor, times: int = 4) -> Tensor:
    """Crop the centre of an image, ... x H x W, so that it is at most ``times`` as long as its short side.

    Resizing by the short side would otherwise make images of any length.
    """
    height, width = image.shape[-2:]
    if max(height, width) <= times * min(height, width):
        return image
    return center_crop(image, [min(height, times * width), min(width, times * height)])


def resize_and_center_crop(image: Tensor, short: int, side: int, interpolation: InterpolationMode) -> Tensor:
    """Resize the short side of an image, antialiased, and crop its centre: ... x H x W to ... x side x side.

    Args:
        image: of any values; labels need nearest interpolation.
        short: pixels of the short side, at least ``side``.
        side: of the square, in pixels.
        interpolation: of the resizing.
    """
    return center_crop(resize(limit_aspect_ratio(image), [short], interpolation, antialias=True), [side, side])


def files_below(*folders: Path) -> Iterator[str]:
    """Yield the paths of files that are not hidden; a folder reached by several links is entered once.

    Raises:
        ValueError: a folder cannot be listed; its images would be missing silently.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise ValueError(f"there is no folder {printable(folder)}: name a folder of images")
    entered = set()
    waiting = [os.fspath(folder) for folder in reversed(folders)]
    while waiting:
        place = waiting.pop()
        with _listing(place):
            status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        inner, files = list_folder(place)
        yield from files
        waiting += sorted(inner, reverse=True)


def list_folder(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """List the paths of the folders and of the files in a folder that are not hidden, in no order.

    Raises:
        ValueError: it cannot be listed.
    """
    inner: list[str] = []
    files: list[str] = []
    with _listing(folder), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "@eaDir":  # thumbnails of a Synology NAS
                continue
            (inner if entry.is_dir() else files).append(os.fspath(entry.path))
    return inner, files


@contextlib.contextmanager
def _listing(folder: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{printable(folder)} cannot be listed ({error.strerror})"
        raise ValueError(f"{reason}: make it readable, or move it") from None


class EncodedImage:
    """An encoded image with its header read and its pixels not decoded yet.

    EXIF orientation is applied here and nowhere else, as in Pillow's ``exif_transpose``.
    """

    def __init__(self, data: bytes) -> None:
        """Read the header, and the height and width of the upright image.

        Raises:
            OSError: it is no image, or so large (by Pillow's limit) that it may be a decompression bomb.
        """
        self._data = data
        with _pillow_errors_as_oserror():
            self._image = Image.open(io.BytesIO(data))
            self._orientation = _orientation(self._image, data)
            if self._orientation != 1 and self._image.format == "TIFF":  # Pillow turns it while it is read
                ImageOps.exif_transpose(self._image, in_place=True)
                self._orientation = 1
        sides = self._image.height, self._image.width
        self.height, self.width = sides if self._orientation < 5 else sides[::-1]

    def decode(self, *, reduction: int = 1) -> Tensor:
        """Decode an image of any colour mode to RGB, uint8 3 x H x W, upright; callable once.

        Alpha is dropped, 16-bit channels keep their upper 8 bits, and an animation gives its first frame.

        Args:
            reduction: 2, 4 or 8 to average blocks of this side, including partial blocks at the stored image's
                right and bottom. JPEGs are reduced by DCT scaling while decoding.

        Raises:
            OSError: it is damaged.
        """
        with _pillow_errors_as_oserror(), self._image as image:
            return _TURNS[self._orientation](self._decode_stored(image, reduction))

    def decode_samples(self) -> Tensor:
        """Decode the stored values of a single-channel PNG, int64 H x W, upright; callable once.

        A palette image gives its indices; grey of fewer than 8 bits is not scaled to 0-255.

        Raises:
            OSError: it is damaged, has several channels, or is no PNG.
        """
        kind, mode = self._image.format, self._image.mode
        if kind != "PNG":
            raise OSError(f"it is {kind}, not PNG: save it as PNG, which keeps every value")
        if mode not in ("1", "L", "P") and not mode.startswith("I"):
            raise OSError(f"it holds {mode}, not one value a pixel: save it as grey or with a palette")
        with _pillow_errors_as_oserror(), self._image as image:
            values = torch.from_numpy(np.asarray(image).astype(np.int64))
            if mode == "L":
                values //= 255 // (2 ** min(self._data[24], 8) - 1)  # bits per sample; Pillow scales to 8
            return _TURNS[self._orientation](values[None])[0]

    def _decode_stored(self, image: Image.Image, reduction: int) -> Tensor:
        jpeg = image.format in ("JPEG", "MPO")  # cameras write MPO: several JPEGs, the image first
        if jpeg and reduction == 1:
            # Faster than Pillow. For JPEGs only: torchvision crashes on a damaged PNG.
            with contextlib.suppress(RuntimeError):
                return decode_jpeg(torch.frombuffer(self._data, dtype=torch.uint8), ImageReadMode.RGB)
        if jpeg and min(image.size) >= 2 * reduction:
            image.draft(None, (image.width // reduction, image.height // reduction))
            reduction = 1
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        image = image.convert("RGB")
        if reduction > 1:
            image = image.reduce(reduction)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


_TURNS: dict[int, Callable[[Tensor], Tensor]] = {
    1: lambda image: image,
    2: lambda image: image.flip(2),
    3: lambda image: image.flip(1, 2),
    4: lambda image: image.flip(1),
    5: lambda image: image.mT,
    6: lambda image: image.rot90(-1, (1, 2)),
    7: lambda image: image.mT.flip(1, 2),
    8: lambda image: image.rot90(1, (1, 2)),
}
"""Transform of a C x H x W image for each EXIF orientation."""

_OF_PNG = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")  # PNG chunks with the orientation


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1 to 8, from EXIF or else XMP; 1 if these are damaged."""
    if image.format == "PNG" and not any(mark in data for mark in _OF_PNG):
        return 1  # Pillow would search behind the pixels, and decode them
    with contextlib.suppress(Exception):  # Pillow's parsers raise anything
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in _TURNS else 1
    return 1


def decode(data: bytes, *, reduction: int = 1) -> Tensor:
    """Read the header and decode: see :meth:`EncodedImage.decode`. Every failure is an OSError."""
    return EncodedImage(data).decode(reduction=reduction)


@contextlib.contextmanager
def _pillow_errors_as_oserror() -> Iterator[None]:
    if limit := pixel_limit():
        Image.MAX_IMAGE_PIXELS = (limit + 1) // 2  # Pillow raises above twice its limit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnidentifiedImageError:  # whose message is an address in memory
            raise OSError("cannot identify image file: Pillow does not read this format") from None
        except Image.DecompressionBombError as error:
            raise OSError(
                f"{str(error).rstrip('.')}; if you trust it, set {MAX_PIXELS} to a larger number of pixels"
            ) from None
        except Exception as error:  # Pillow's parsers raise anything
            raise OSError(f"{type(error).__name__}: {error}") from None


def pixel_limit() -> int | None:
    """Value of the environment variable ``MAX_PIXELS``; None for Pillow's limit.

    Raises:
        ValueError: it is no whole number above 0.
    """
    wanted = os.environ.get(MAX_PIXELS)
    if not wanted:
        return None
    if not wanted.isdecimal() or not int(wanted):
        raise ValueError(f"{MAX_PIXELS}={wanted}: give a whole number of pixels, such as 500000000")
    return int(wanted)

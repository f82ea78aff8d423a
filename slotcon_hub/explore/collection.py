"""The concepts beside which an image is seen: a folder of ``slotcon-hub concepts``, found or made once."""

import base64
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from slotcon_hub import __version__
from slotcon_hub.concepts.discover import crops, discover
from slotcon_hub.concepts.drawing import cut_row
from slotcon_hub.concepts.gallery import NUMBERS, Gallery, page_name
from slotcon_hub.concepts.inference import CenterCrop, weights_digest
from slotcon_hub.files import atomic_write, cache_folder
from slotcon_hub.images import ImageFiles, printable
from slotcon_hub.models.prototype_model import SlotConPrototypes

__all__ = ["EXAMPLES", "Collection", "Concept", "find_or_make"]

EXAMPLES = Path(__file__).parent / "examples"
"""Drawn scenes that come with the package."""
_TOP, _PER_PAGE, _BATCH = 8, 10, 16


@dataclass(frozen=True)
class Concept:
    """What a prototype stands for in a collection of images."""

    prototype: int
    segments: int
    """Number of its segments in the collection."""
    share: float
    """Fraction of the collection's pixels."""
    nearest: list[tuple[float, str, str]]
    """Similarity, name of the file and thumbnail as the URL of a JPEG, for the most similar segments."""


class Collection:
    """Concepts that :class:`slotcon_hub.concepts.gallery.Gallery` wrote."""

    def __init__(self, folder: Path) -> None:
        """Read the numbers.

        Raises:
            ValueError: the folder holds no concepts, or they are damaged.
        """
        self._folder = folder
        try:
            numbers = json.loads((folder / NUMBERS).read_bytes())
            self._rows: list[dict[str, Any]] = numbers["concepts"]
            self._per_page: int = numbers["per_page"]
            self.model, self.images = str(numbers["model"]), int(numbers["images"])
            self.weights: str | None = numbers.get("weights")  # None in folders of earlier versions
            used = [k for k, row in enumerate(self._rows) if row["segments"]]
            self._order = sorted(used, key=lambda k: (-self._rows[k]["segments"], k))
        except (OSError, ValueError, KeyError, TypeError):
            reason = f"{printable(folder)} holds no whole {NUMBERS}"
            raise ValueError(f"{reason}: make it again with `slotcon-hub concepts --force`") from None

    def __len__(self) -> int:
        return len(self._rows)

    def concept(self, prototype: int) -> Concept:
        """Read the thumbnails of a prototype.

        Raises:
            OSError: their page is missing or damaged.
        """
        row = self._rows[prototype]
        thumbnails: list[str] = []
        if row["segments"]:
            page, line = divmod(self._order.index(prototype), self._per_page)
            with Image.open(self._folder / page_name(page)) as drawn:
                thumbnails = [_data_url(image) for image in cut_row(drawn, line, len(row["nearest"]))]
        nearest = [
            (near["similarity"], near["file"], url) for near, url in zip(row["nearest"], thumbnails, strict=True)
        ]
        return Concept(prototype, row["segments"], row["share"], nearest)


def find_or_make(
    model: SlotConPrototypes, name: str, images: Path, precision: torch.dtype = torch.float32
) -> Collection:
    """Read concepts, or make those of a folder of images once, in a cache.

    The cache is ``$SLOTCON_HUB_CACHE``, or a folder in the user's cache. Other weights, other images and images
    that have changed make other concepts.

    Args:
        model: in eval mode.
        name: of the model, as in the folder of concepts.
        images: a folder of images at any depth, or one that ``slotcon-hub concepts`` wrote.
        precision: of the network, float32 or bfloat16.

    Raises:
        ValueError: the concepts are of another model, or there are no images or none that can be read.
        OSError: the cache cannot be written.
    """
    if (images / NUMBERS).is_file():
        found = Collection(images)
        if found.model != name or len(found) != model.num_classes:
            raise ValueError(f"{images} holds concepts of {found.model}, not of {name}: give a folder of images")
        if found.weights not in (None, weights_digest(model)):
            raise ValueError(
                f"{images} holds concepts of other weights of {name}: make it again with `slotcon-hub concepts "
                "--force`"
            )
        return found
    files = ImageFiles(images)
    folder = cache_folder() / "concepts" / _fingerprint(model, files, precision)
    if not (folder / NUMBERS).is_file():
        with atomic_write(folder) as new:
            new.mkdir()
            _make(model, name, files, images, precision, new)
    return Collection(folder)


def _make(
    model: SlotConPrototypes, name: str, files: ImageFiles, images: Path, precision: torch.dtype, folder: Path
) -> None:
    crop = CenterCrop.from_model(model)
    batches = crops(files, crop, batch_size=_BATCH, workers=0)
    concepts = discover(model, tqdm(batches, f"concepts of {name}", unit="batch"), top=_TOP, precision=precision)
    if not concepts.images:
        raise ValueError(f"none of the {len(files)} images in {images} can be read: give other --images")
    facts = {"model": name, "weights": weights_digest(model), "images": printable(images), "crop": crop.side}
    for _ in Gallery(concepts, files, images, crop, facts, _PER_PAGE).write(folder):
        pass


def _fingerprint(model: SlotConPrototypes, files: ImageFiles, precision: torch.dtype) -> str:
    """SHA-256 of all that the concepts depend on; of the images' content, size and time of the last change."""
    digest = hashlib.sha256(f"{__version__} {precision} {model.pretrained_cfg} {weights_digest(model)}".encode())
    for path in files.paths:
        status = os.stat(path)
        digest.update(os.fsencode(f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()[:32]


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

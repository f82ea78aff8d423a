"""Pictures to pre-train on, from folders, Parquet files or the Hugging Face Hub, as batches of view pairs.

Every sample is drawn from (seed, epoch, index) and every order from (seed, epoch), whatever the number of
processes, workers or interruptions.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.io import ImageReadMode, decode_image

from training.views import TwoViews

__all__ = [
    "ImageFiles",
    "ImageTable",
    "Pictures",
    "Steps",
    "TooManyUnreadable",
    "Unreadable",
    "ViewPairs",
    "decode",
    "make_loader",
    "open_pictures",
]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
SUBSTITUTES = 100  # pictures tried in the place of an unreadable one
TOLERATED = 0.01  # share of the pictures that may be unreadable


class Pictures(Protocol):
    """Encoded pictures, by number."""

    def __len__(self) -> int:
        """Number of pictures."""

    def name(self, index: int) -> str:
        """What a person finds the picture by."""

    def read(self, index: int) -> bytes:
        """The encoded file; raises OSError where there is none."""


class ImageFiles:
    """All JPEG, PNG and WebP files below a folder, in order of their paths."""

    def __init__(self, folder: Path) -> None:
        """List the files.

        Raises:
            ValueError: the folder does not exist, or holds no picture.
        """
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: give --data a folder of pictures")
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise ValueError(f"{folder} holds no {', '.join(sorted(SUFFIXES))} file, at any depth")

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path of a file."""
        return str(self.paths[index])

    def read(self, index: int) -> bytes:
        """Bytes of a file."""
        return self.paths[index].read_bytes()


class ImageTable:
    """The image column of a ``datasets`` table, left encoded."""

    def __init__(self, table: Any, column: str) -> None:
        """Take a table.

        Raises:
            ValueError: it has no such column, or no row.
        """
        import datasets

        if column not in table.column_names:
            raise ValueError(f"there is no column {column!r}: give --image-column one of {table.column_names}")
        if not len(table):
            raise ValueError("the data set has no rows")
        self.column = column
        self.table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.table)

    def name(self, index: int) -> str:
        """Row number, and the path if the table knows one."""
        path = self.table[index][self.column]["path"]
        return f"row {index}" + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        """Bytes of an image; those of its file where the table holds paths."""
        image = self.table[index][self.column]
        return image["bytes"] or Path(image["path"]).read_bytes()


def open_pictures(data: str, split: str = "train", column: str = "image") -> Pictures:
    """Open what ``--data`` names.

    Args:
        data: a folder of pictures, a Parquet file or a folder of them, or ``hf:`` and the name of a data set on
            the Hugging Face Hub.
        split: of a Hub data set, or of a folder of Parquet files named after their split.
        column: that holds the images of a table.

    Raises:
        ValueError: there is nothing to read, in one sentence.
    """
    path = Path(data).expanduser()
    parquet = sorted(path.rglob("*.parquet")) if path.is_dir() else []
    if path.suffix == ".parquet" or parquet:
        return ImageTable(_load_parquet(path, parquet, split), column)
    if data.startswith("hf:"):
        return ImageTable(_load_hub(data.removeprefix("hf:"), split), column)
    return ImageFiles(path)


def _load_parquet(path: Path, files: Sequence[Path], split: str) -> Any:
    import datasets

    files = [f for f in files if f.name.startswith(split)] or files or [path]
    if not files[0].is_file():
        raise ValueError(f"there is no file {files[0]}")
    return datasets.load_dataset("parquet", data_files=[str(f) for f in files], split="train")


def _load_hub(name: str, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the data set {name!r}, split {split!r}, could not be loaded: {reason}") from None


def decode(data: bytes) -> Tensor:
    """Decode a picture of any colour mode to RGB, uint8 3 x H x W.

    Raises:
        OSError: it is truncated, or no picture.
    """
    try:
        picture = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        if picture.dtype == torch.uint8:
            return picture
    except (RuntimeError, ValueError):
        pass  # PIL reads more, such as CMYK and 16 bits a channel
    try:
        with Image.open(io.BytesIO(data)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from None


class ViewPairs(Dataset[dict[str, Any]]):
    """Pairs of views of pictures, by (epoch, index)."""

    def __init__(self, pictures: Pictures, views: TwoViews, seed: int) -> None:
        """Take the pictures, how views are made of them, and the seed of all draws."""
        self.pictures, self.views, self.seed = pictures, views, seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The sample of an epoch and a picture: what ``TwoViews`` returns, and ``unreadable`` indices.

        In the place of an unreadable picture comes another one, drawn from the same numbers; after a hundred of
        them a black one, since such data end the run at its next line of metrics.
        """
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        unreadable: list[int] = []
        picture = torch.zeros(3, self.views.size, self.views.size, dtype=torch.uint8)
        while len(unreadable) < SUBSTITUTES:
            try:
                picture = decode(self.pictures.read(index))
                break
            except OSError:
                unreadable.append(index)
                index = int(rng.integers(len(self.pictures)))
        return {**self.views(picture, rng), "unreadable": unreadable}


class TooManyUnreadable(Exception):
    """So many pictures cannot be read that the data must be mended first."""


class Unreadable:
    """The pictures that a run could not read: named once, counted over all processes."""

    def __init__(self, pictures: Pictures, accelerator: Accelerator) -> None:
        """Start with none."""
        self.pictures, self.accelerator = pictures, accelerator
        self.mine: set[int] = set()
        self.all: set[int] = set()

    def add(self, indices: list[int]) -> None:
        """Note pictures that this process met."""
        self.mine.update(indices)

    def check(self) -> None:
        """Name the new ones; all processes must call this together.

        Raises:
            TooManyUnreadable: they are more than 1 % of the pictures; on all processes alike.
        """
        met = set(gather_object(sorted(self.mine)))
        for index in sorted(met - self.all):
            self.accelerator.print(
                f"skipped, since it cannot be read: {self.pictures.name(index)}", file=sys.stderr
            )
        self.all |= met
        if len(self.all) > TOLERATED * len(self.pictures):
            names = "\n  ".join(self.pictures.name(index) for index in sorted(self.all))
            raise TooManyUnreadable(
                f"{len(self.all)} of {len(self.pictures)} pictures cannot be read, more than {TOLERATED:.0%}: "
                f"mend or remove them, then start again\n  {names}"
            )


class Steps(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) pairs of this process, micro-batch after micro-batch, for the steps of a whole run.

    An epoch is a random order of all pictures, cut into global batches; what is left over is not seen. A global
    batch is cut into equal micro-batches, which go to the processes in turn.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: range,
        *,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        accumulation: int = 1,
    ) -> None:
        """Plan the steps.

        Args:
            length: number of pictures.
            batch_size: of all processes together, in one optimisation step.
            steps: step numbers, counted from the start of the run.
            seed: of the orders.
            rank: of this process.
            processes: how many there are.
            accumulation: micro-batches a process makes of its share.
        """
        self.length, self.batch_size, self.steps, self.seed = length, batch_size, steps, seed
        self.rank, self.processes, self.accumulation = rank, processes, accumulation

    def __len__(self) -> int:
        """Number of micro-batches of this process."""
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield micro-batches."""
        steps_per_epoch = self.length // self.batch_size
        current, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            epoch, place = divmod(step, steps_per_epoch)
            if epoch != current:
                current, order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.length)
            batch = order[place * self.batch_size :][: self.batch_size]
            parts = np.split(batch, self.accumulation * self.processes)
            for part in parts[self.rank :: self.processes]:
                yield [(epoch, int(index)) for index in part]


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples: views 2 of B x 3 x S x S, boxes, flips and colours likewise, unreadable indices joined."""
    batch: dict[str, Any] = {
        key: torch.stack([s[key] for s in samples], dim=1) for key in ("views", "boxes", "flips", "color")
    }
    batch["unreadable"] = [index for s in samples for index in s["unreadable"]]
    return batch


def make_loader(pairs: ViewPairs, steps: Steps, workers: int) -> DataLoader[Any]:
    """Load the micro-batches of a run; the workers live as long as it does."""
    return DataLoader(
        pairs,
        batch_sampler=steps,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_single_thread,
    )


def _single_thread(_: int) -> None:
    torch.set_num_threads(1)

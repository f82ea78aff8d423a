"""Images that need no disk: Parquet files, near or far, of which each worker reads what it is about to use.

The unit of reading is the row group, of some hundred rows as ``datasets`` writes them. An epoch deals all row
groups anew, in a random order, to the workers of all processes; each of them reads its own once, a few at a time,
and mixes their rows over a window. Everything else, the number of images and what is drawn for each of them, is
as for images on a disk, and so a stream resumes exactly in the middle of an epoch. Only the order depends on
the numbers of processes and workers: a run that goes on with others sees another selection in the rest of its
epoch.
"""

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from slotcon_hub.images import pixel_limit
from training.engine.errors import RunError

__all__ = ["ParquetStream", "Unreachable", "deal"]

T = TypeVar("T")

WINDOW = 1000  # rows over which a worker mixes; about as many are in its memory
HEAVIEST = 2**30  # bytes of a row group
PAUSES = (1, 5, 25)  # seconds between attempts to read


class Unreachable(RunError):
    """A part of the stream cannot be read, time and again."""


class ParquetStream:
    """The image column of Parquet files on any file system that fsspec knows: ``hf://``, ``https://``, ``s3://``."""

    def __init__(self, files: Callable[[], list[str]], column: str) -> None:
        """Read the footers, on the main process for all.

        Args:
            files: lists the files, by their URLs or paths; called on the main process alone.
            column: that holds the images, encoded.

        Raises:
            ValueError: it does not, a row group is too heavy, or there is nothing; on all processes alike.
        """
        pixel_limit()
        self.column = column
        self.files, self._footers = _on_main(lambda: _read_footers(files(), column))
        self._parts = [(file, i) for file, f in enumerate(self._footers) for i in range(f.num_row_groups)]
        self.groups = np.array([self._footers[file].row_group(i).num_rows for file, i in self._parts])
        """Rows of each row group."""
        self._ends = np.cumsum(self.groups)
        self._rows: dict[int, bytes | None] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        """Row number, and the file that it is from."""
        return f"row {index} ({self.files[self._parts[self._group(index)][0]]})"

    def read(self, index: int) -> bytes:
        """Bytes of an image, which are forgotten then.

        Raises:
            OSError: the row is empty.
            Unreachable: its row group cannot be read.
        """
        if index not in self._rows:
            self._load(self._group(index))
        image = self._rows.pop(index)
        if not image:
            raise OSError(f"row {index} is empty")
        return image

    def digest(self) -> str:
        """SHA-256 of the names of the files, and of the rows and bytes of their row groups."""
        groups = [(self.files[file], self._footers[file].row_group(i)) for file, i in self._parts]
        rows = (f"{os.path.basename(file)} {group.num_rows} {group.total_byte_size}" for file, group in groups)
        return hashlib.sha256("\0".join(rows).encode()).hexdigest()

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _load(self, group: int) -> None:
        """Keep the rows of a group, and forget those that have waited for longest."""
        file, part = self._parts[group]
        for pause in (*PAUSES, None):
            try:
                images = _read_group(self.files[file], self._footers[file], part, self.column)
                break
            except Exception as error:  # each file system has its own
                if pause is None:
                    reason = " ".join(str(error).split())
                    raise Unreachable(f"{self.files[file]} could not be read: {reason}") from None
                time.sleep(pause)
        start = int(self._ends[group] - self.groups[group])
        self._rows.update(enumerate(images, start))
        while len(self._rows) > 2 * (WINDOW + self.groups.max()):  # those in use are at most half as many
            del self._rows[next(iter(self._rows))]


def deal(groups: np.ndarray, lanes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal rows to lanes, each of which reads whole row groups in turn, but for the first and the last of its own.

    Args:
        groups: int (G,), rows of each row group; together at least P.
        lanes: int (P,), the lane that takes each place of an epoch.
        rng: the source of all randomness.

    Returns:
        int (P,), the row for each place, none twice. In a lane no row is more than `WINDOW` places from where it
        would stand if whole row groups followed one another.
    """
    ends = np.cumsum(groups)
    rows = np.concatenate([np.arange(ends[g] - groups[g], ends[g]) for g in rng.permutation(len(groups))])
    order, dealt = np.empty(len(lanes), dtype=np.int64), 0
    for lane in np.unique(lanes):
        places = np.flatnonzero(lanes == lane)
        own = rows[dealt : dealt + len(places)]
        order[places] = own[np.argsort(np.arange(len(own)) + rng.uniform(0, WINDOW, len(own)))]
        dealt += len(places)
    return order


def _read_footers(files: list[str], column: str) -> tuple[list[str], list[Any]]:
    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(_read_footer, files))
    for file, footer in zip(files, footers, strict=True):
        _check(file, footer, column)
    if not sum(footer.num_rows for footer in footers):
        raise ValueError("the data set has no rows: give --data another")
    return files, footers


def _read_footer(file: str) -> Any:
    import pyarrow.parquet

    try:
        with _open(file) as opened:
            return pyarrow.parquet.read_metadata(opened)
    except Exception as error:
        raise ValueError(f"{file} could not be read: {' '.join(str(error).split())}") from None


def _read_group(file: str, footer: Any, group: int, column: str) -> list[bytes | None]:
    import pyarrow.parquet

    with _open(file) as opened, pyarrow.parquet.ParquetFile(opened, metadata=footer, pre_buffer=True) as parquet:
        images = parquet.read_row_group(group, columns=[column], use_threads=False).column(0).to_pylist()
    return [image["bytes"] if isinstance(image, dict) else image for image in images]


def _open(file: str) -> Any:
    """Open a file of which the parts that are asked for are read, and no more."""
    import fsspec

    system, path = fsspec.core.url_to_fs(file)
    return system.open(path, "rb", cache_type="none")


def _check(file: str, footer: Any, column: str) -> None:
    import pyarrow

    schema = footer.schema.to_arrow_schema()
    names = [name for name in schema.names if name != column]
    others = f"give --image-column one of {', '.join(names)}" if names else "give --data another"
    if column not in schema.names:
        raise ValueError(f"there is no column {column!r} in {file}: {others}")
    kind = schema.field(column).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise ValueError(f"column {column!r} of {file} holds no encoded images: {others}")
    heaviest = max((footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)), default=0)
    if heaviest > HEAVIEST:
        raise ValueError(
            f"{file} has row groups of {heaviest / 1e9:.1f} GB, which every worker would keep in its memory: write "
            "it in row groups of some hundred rows"
        )


def _on_main(task: Callable[[], T]) -> T:
    """Do on the main process what all of them need; its ValueError is raised by all."""
    result = problem = None
    if PartialState().is_main_process:
        try:
            result = task()
        except ValueError as error:
            problem = str(error)
    result, problem = broadcast_object_list([(result, problem)])[0]
    if problem is not None:
        raise ValueError(problem)
    return result

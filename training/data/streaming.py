"""Streaming of images from local or remote Parquet files, without a copy on disk.

The unit of reading is the row group, some hundred rows as ``datasets`` writes them. Each epoch shuffles all row
groups and distributes them over the workers of all processes; a worker reads each of its row groups once, a few at
a time, and shuffles their rows within a window. As with images on disk, a run resumes exactly in the middle of an
epoch. But the order depends on the numbers of processes and workers: a run resumed with other numbers sees a
different selection in the rest of its epoch.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from slotcon_hub.images import names_digest, pixel_limit
from training.engine.errors import RunError

__all__ = ["ParquetStream", "Unreachable", "deal"]

T = TypeVar("T")

WINDOW = 1000  # rows within which a worker shuffles; it keeps about as many in memory
HEAVIEST = 2**30  # maximum bytes of a row group
PAUSES = (1, 5, 25)  # seconds between attempts to read


class Unreachable(RunError):
    """A row group cannot be read after all retries."""


class ParquetStream:
    """The image column of Parquet files on any file system of fsspec: ``hf://``, ``https://``, ``s3://``."""

    def __init__(self, files: Callable[[], list[str]], column: str) -> None:
        """Read the footers on the main process and broadcast them.

        Args:
            files: lists the URLs or paths; called on the main process only.
            column: name of the column of encoded images.

        Raises:
            ValueError: on all processes: a file has no such column, a row group is too large, or there are no rows.
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
        """Row number and file."""
        return f"row {index} ({self.files[self._parts[self._group(index)][0]]})"

    def read(self, index: int) -> bytes:
        """Read the encoded bytes of an image, and remove them from the buffer.

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
        """SHA-256 over file names and the row and byte counts of their row groups."""
        groups = [(self.files[file], self._footers[file].row_group(i)) for file, i in self._parts]
        rows = (f"{os.path.basename(file)} {group.num_rows} {group.total_byte_size}" for file, group in groups)
        return names_digest(rows)

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _load(self, group: int) -> None:
        """Add the rows of a group to the buffer, and evict the oldest."""
        file, part = self._parts[group]
        for pause in (*PAUSES, None):
            try:
                images = _read_group(self.files[file], self._footers[file], part, self.column)
                break
            except Exception as error:  # each file system raises its own
                if pause is None:
                    reason = " ".join(str(error).split())
                    raise Unreachable(f"{self.files[file]} could not be read: {reason}") from None
                time.sleep(pause)
        start = int(self._ends[group] - self.groups[group])
        self._rows.update(enumerate(images, start))
        while len(self._rows) > 2 * (WINDOW + self.groups.max()):  # at most half of these are still needed
            del self._rows[next(iter(self._rows))]


def deal(groups: np.ndarray, lanes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distribute rows over lanes (workers); each lane reads whole row groups, except its first and last.

    Args:
        groups: int (G,), rows of each row group; together at least P.
        lanes: int (P,), the lane that reads each position of an epoch.
        rng: the source of all randomness.

    Returns:
        int (P,), a distinct row for each position. Within a lane a row is moved by at most `WINDOW` positions from
        the order of its row groups.
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
    """Open a file without read-ahead."""
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
            f"{file} has row groups of {heaviest / 1e9:.1f} GB, which every worker would keep in memory: rewrite "
            "it with row groups of some hundred rows"
        )


def _on_main(task: Callable[[], T]) -> T:
    """Run a task on the main process and broadcast its result; its ValueError is raised on all processes."""
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

"""The local store of weights: folders that timm loads, with the SHA-256 of their files."""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from slotcon_hub.files import sha256

__all__ = [
    "CONFIG",
    "RECORD",
    "WEIGHTS",
    "add",
    "check_free",
    "find",
    "folder",
    "home",
    "location",
    "names",
    "verify",
]

WEIGHTS, CONFIG, RECORD = "model.safetensors", "config.json", "sha256.json"
_NAME = re.compile(r"slotcon_[a-z0-9_]+\.[A-Za-z0-9][A-Za-z0-9_.-]*")
_ATTEMPTS = 100  # to move an entry while other processes do the same


def home() -> Path:
    """The store's folder: ``SLOTCON_HUB_HOME``, or one in the user's data folder. It need not exist.

    Raises:
        RuntimeError: neither is set, and the user has no home folder.
    """
    if sys.platform == "win32":
        data = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    try:
        return Path(os.environ.get("SLOTCON_HUB_HOME") or f"{data}/slotcon_hub").expanduser()
    except RuntimeError:
        raise RuntimeError("this user has no home folder: set SLOTCON_HUB_HOME to one for the store") from None


def location() -> str:
    """The store's folder as text for messages, also if there is none."""
    try:
        return str(home())
    except RuntimeError:
        return "nowhere, as this user has no home folder: set SLOTCON_HUB_HOME"


def folder(name: str) -> Path:
    """Folder of the weights of a name, ``<architecture>.<tag>``; it need not exist.

    Raises:
        ValueError: it is no such name.
        RuntimeError: as :func:`home`.
    """
    _check_name(name)
    return home() / name


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of weights: use architecture and tag, such as slotcon_r50.mine")


def find(name: str) -> Path | None:
    """Folder of the weights of a name, not verified; None if the store lacks them or cannot be read.

    Raises:
        ValueError: it is no name of weights.
    """
    _check_name(name)
    with suppress(RuntimeError):
        if os.path.isdir(path := folder(name)):  # Path.is_dir may raise
            return path
    return None


def names() -> list[str]:
    """Names of all weights in the store, sorted; empty if it cannot be read."""
    try:
        found = os.listdir(home())
    except (OSError, RuntimeError):
        return []
    return sorted(name for name in found if _NAME.fullmatch(name) and find(name))


def verify(path: Path) -> Path:
    """Compare the files of an entry with the SHA-256 that was recorded when it was imported.

    Returns:
        Path of the safetensors file.

    Raises:
        ValueError: a file is missing or has changed.
    """
    again = f"remove {path} and import the checkpoint again"
    try:
        recorded = json.loads((path / RECORD).read_bytes())
        for file in (WEIGHTS, CONFIG):
            if sha256(path / file) != recorded[file]:
                raise ValueError(f"{path / file} has changed since it was imported (its SHA-256 differs): {again}")
    except PermissionError as error:
        raise ValueError(f"{error.filename} cannot be read: ask its owner for the permission") from None
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"the entry {path.name} of the store is incomplete: {again}") from None
    return path / WEIGHTS


def add(entries: Mapping[str, Callable[[Path], None]], replace: Iterable[str] = ()) -> list[Path]:
    """Add weights to the store; all are written before the first is moved into place.

    Args:
        entries: for each name a function that writes ``model.safetensors`` and ``config.json`` into a folder.
        replace: names whose weights are removed, if the store has them.

    Returns:
        The folders.

    Raises:
        ValueError: a name is not ``<architecture>.<tag>``.
        FileExistsError: the store has one of the names, and it is not in ``replace``.
        OSError: the disk is full, or the store is not writable; its entries are unchanged.
    """
    targets = {name: folder(name) for name in entries}
    leaving = {name: folder(name) for name in replace}
    check_free(entries.keys() - leaving.keys())
    home().mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=home()))
    try:
        for name, write in entries.items():
            staging = scratch / name
            staging.mkdir()
            write(staging)
            record = {file: sha256(staging / file) for file in (WEIGHTS, CONFIG)}
            (staging / RECORD).write_text(json.dumps(record, indent=2) + "\n")
            for path in staging.iterdir():  # on disk before the rename
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        for name, target in targets.items():
            if name in leaving:
                _move(scratch / name, target, scratch / f"old-{name}")
            else:
                _move_in(scratch / name, target)
        for name in leaving.keys() - targets.keys():
            with suppress(FileNotFoundError):
                leaving[name].rename(scratch / f"old-{name}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return list(targets.values())


def check_free(names: Iterable[str]) -> None:
    """Check that the store has none of these names.

    Raises:
        FileExistsError: it has one.
    """
    if taken := sorted(filter(find, names)):
        raise FileExistsError(f"the store has {taken[0]} already: add --force to replace it, or choose another tag")


def _move_in(new: Path, target: Path) -> None:
    try:
        new.rename(target)
    except OSError:
        check_free([target.name])  # another process may have added it meanwhile
        raise


def _move(new: Path, target: Path, old: Path) -> None:
    """Replace a folder by another, which takes two renames, while other processes may do the same."""
    aside: Path | None = None
    for attempt in range(_ATTEMPTS):
        with suppress(OSError):  # there is nothing, or another process moved it first
            aside = target.rename(old.with_name(f"{old.name}-{attempt}"))
        try:
            new.rename(target)
            return
        except OSError:
            if attempt + 1 == _ATTEMPTS:
                if aside is not None:
                    aside.rename(target)
                raise

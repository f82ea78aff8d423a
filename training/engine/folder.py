"""The folder of a run: its name, its lock, and ``run.json``, the facts of the run."""

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from rich.table import Table

from slotcon_hub.cli.table import shorten
from slotcon_hub.files import atomic_write
from training.engine.outputs import unwritable
from training.engine.settings import RunSettings
from training.engine.words import as_facts, as_options, show

__all__ = ["as_json", "choose", "create", "describe", "lock"]

RUN = "run.json"

LOCK = "lock"

HELD = "{} holds a run already: add --resume to continue it, or choose another --output"

STARTS = (
    "time",
    "revision",
    "versions",
    "python",
    "device",
    "processes",
    "threads",
    "mixed_precision",
    "convolutions",
)
"""Facts that may differ between starts of a run."""

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "datasets", "safetensors", "huggingface-hub")


def choose(name: str, settings: RunSettings) -> Path:
    """Choose the folder of a run, on the main process for all; :func:`create` makes it later.

    Raises:
        ValueError: it holds another run, or cannot be created; raised on all processes.
    """
    folder = settings.output or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    problem = None
    if folder.exists() and not folder.is_dir():
        problem = f"{folder} is a file: choose another --output"
    elif not settings.resume and folder.is_dir() and any(folder.iterdir()):
        problem = HELD.format(folder)
    elif settings.resume and folder.is_dir() and not (folder / RUN).exists() and not _is_begun(folder):
        problem = f"{folder} has other files than a run: choose another --output"
    problem = problem or unwritable(folder, "--output")
    folder, problem = broadcast_object_list([(folder, problem)])[0]
    if problem:
        raise ValueError(problem)
    return folder


def create(folder: Path, *, named: bool) -> Path:
    """Create and lock the folder of a new run atomically, on the main process for all.

    Only one of several concurrent processes gets the folder: the one that created its lock file.

    Args:
        folder: chosen for the run.
        named: whether the user chose it; else, a number is appended if another run took the name.

    Returns:
        The folder.

    Raises:
        ValueError: another run took it; raised on all processes.
    """
    made = problem = None
    if PartialState().is_main_process:
        names = [folder] if named else [folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 1000))]
        try:
            made = next((name for name in names if _create_locked(name)), None)
            problem = None if made else HELD.format(folder)
        except OSError as error:
            problem = f"{folder} cannot be written ({error.strerror}): choose another --output"
    made, problem = broadcast_object_list([(made, problem)])[0]
    if problem:
        raise ValueError(problem)
    return made


def _create_locked(folder: Path) -> bool:
    """Create a folder with its lock; whether this process created the lock and the folder has nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        return False
    try:
        (folder / LOCK).touch(exist_ok=False)
    except FileExistsError:
        return False
    lock(folder)
    return True


def lock(folder: Path, patience: int = 180) -> None:
    """Lock a folder until this process ends in any way.

    Args:
        folder: of the run.
        patience: seconds to wait for another process, which may be saving before it stops; or for a file server,
            which holds the lock of a lost machine for about 90 seconds.

    Raises:
        ValueError: the other process still holds the lock.
    """
    # Never closed, which would release the lock. Workers, which may live longer, do not inherit this kind of lock.
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    for second in range(patience + 1):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):
            if second == 0:
                what = f"the process that is training in {folder} to end"
                print(f"waiting up to {patience} seconds for {what}", file=sys.stderr)
            time.sleep(1)
        except OSError as error:  # some network file systems do not support locks
            reason = f"{folder} cannot be locked ({error.strerror})"
            print(f"warning: {reason}: make sure that no other process trains in it", file=sys.stderr)
            return
    reason = f"another process is still training in {folder}, after {patience} seconds"
    raise ValueError(f"{reason}: stop it first, or choose another --output")


def describe(
    folder: Path,
    name: str,
    settings: RunSettings,
    accelerator: Accelerator,
    facts: dict[str, Any],
    step: int | None = None,
) -> None:
    """Print the resolved configuration, and save it with versions, machine and revision as ``run.json``.

    Args:
        folder: of the run.
        name: of the recipe.
        settings: of the run.
        accelerator: of the run.
        facts: of the task, such as the number of images.
        step: at which the run resumes: the file's facts stay, and this start is appended to its list ``resumed``,
            with changed settings. None for a new run.
    """
    cuda = accelerator.device.type == "cuda"
    whole = {
        "recipe": name,
        "settings": asdict(settings),
        **facts,
        "processes": accelerator.num_processes,
        "micro_batch": settings.micro_batch(accelerator.num_processes),
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "convolutions": ("TF32" if torch.backends.cudnn.allow_tf32 else "float32") if cuda else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark if cuda else None,
        "device": _device_name(accelerator.device),
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "revision": _revision(),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    whole = as_json(whole)
    kept = whole if step is None else _resumed(json.loads((folder / RUN).read_text()), whole, step)
    with atomic_write(folder / RUN) as new:
        new.write_text(json.dumps(kept, indent=2) + "\n")
    rest = as_facts({key: value for key, value in whole.items() if key not in ("recipe", "settings")})
    table = Table("option", "value", title=f"{name} in {folder}", title_justify="left")
    for key, value in [*as_options(whole["settings"]).items(), ("", ""), *rest.items()]:
        table.add_row(key, shorten(value))
    show(table)


def _resumed(first: dict[str, Any], now: dict[str, Any], step: int) -> dict[str, Any]:
    """Facts of a run's first start, with a later start appended to ``resumed``."""
    others = {k: v for k, v in now["settings"].items() if v != first["settings"].get(k)}
    start = {"step": step, **{k: now[k] for k in STARTS}, "settings": others}
    return {**first, "resumed": [*first.get("resumed", []), start]}


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON values: tuples as lists, paths as text."""
    return json.loads(json.dumps(settings, default=str))


def _is_begun(folder: Path) -> bool:
    """Whether a folder is empty, or of a run that was killed before it wrote ``run.json``."""
    return all(path.name == LOCK or path.name.startswith(f".{RUN}-") for path in folder.iterdir())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _revision() -> str | None:
    """Git revision of this checkout, with "-dirty" if it was changed; None outside one."""
    program = shutil.which("git")
    if program is None:
        return None

    def git(*question: str) -> str:
        command = [program, "-C", str(Path(__file__).parent), *question]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    revision = git("rev-parse", "HEAD")
    return f"{revision}-dirty" if revision and git("status", "--porcelain") else revision or None

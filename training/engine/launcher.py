"""Detect whether accelerate's launcher or torchrun started this process, and with which options.

Environment variables alone do not show it: users set the launchers' variables by hand, and accelerate exports
defaults.
"""

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
from accelerate.commands.config.config_args import default_config_file, load_config_from_file

__all__ = ["Launcher", "find_launcher", "told_precision", "told_threads"]

COMMANDS = {"accelerate", "accelerate-launch", "torchrun"}
MODULES = {"accelerate.commands.accelerate_cli", "accelerate.commands.launch", "torch.distributed.run"}


@dataclass(frozen=True)
class Launcher:
    """The launcher that is the parent of this process."""

    pid: int
    words: tuple[str, ...]
    """Its command line, without the arguments of the script that it launches."""
    environment: dict[str, str]
    """Its environment at start; empty if the system does not provide it."""

    def option(self, name: str) -> str | None:
        """Value of an option such as ``--mixed_precision``, in any spelling; None if it is missing."""
        for word, following in zip(self.words, (*self.words[1:], ""), strict=True):
            option, equals, value = word.partition("=")
            if option.replace("-", "_") == name.replace("-", "_"):
                return value if equals else following
        return None


def find_launcher(parent: int) -> Launcher | None:
    """Detect a launcher by its command line; None if it is none, or the system does not provide it."""
    try:
        process = psutil.Process(parent)
        words = tuple(process.cmdline())
    except psutil.Error:
        return None
    # python .../accelerate launch ...; python -m accelerate.commands.launch ...
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else ()
    if not any(Path(word).name in COMMANDS for word in words[:2]) and not MODULES & {*module}:
        return None
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        environment = {}
    arguments = tuple(sys.argv[1:])  # of this script, which may have options of the same names
    if arguments and words[-len(arguments) :] == arguments:
        words = words[: -len(arguments)]
    return Launcher(parent, words, environment)


@functools.cache
def launcher() -> Launcher | None:
    """The launcher of this process, detected once, while it is still alive."""
    return find_launcher(os.getppid())


def told_precision() -> str | None:
    """The precision that the user set in accelerate, by option, variable or configuration; None for its default."""
    given = os.environ.get("ACCELERATE_MIXED_PRECISION")
    start = launcher()
    if given != "no" or start is None or "ACCELERATE_MIXED_PRECISION" in start.environment:
        return given
    named = start.option("--config_file")
    file = named or (default_config_file if os.path.isfile(default_config_file) else None)
    configured = file is not None and load_config_from_file(file).mixed_precision is not None
    return given if configured or start.option("--mixed_precision") else None


def told_threads() -> int | None:
    """Threads that the user chose for each process, by ``OMP_NUM_THREADS`` or accelerate's option; None if neither.

    Launchers set the variable themselves where the user did not.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # further ones: of nested regions
    if not given.isdecimal() or int(given) < 1:
        return None
    start = launcher()
    chosen = (
        start is None or "OMP_NUM_THREADS" in start.environment or start.option("--num_cpu_threads_per_process")
    )
    return int(given) if chosen else None

"""What started this process: accelerate's launcher, torchrun, or neither; and what the user told the launcher.

A variable alone says neither: users set those of the launchers by hand, and accelerate sets its defaults for all.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
from accelerate.commands.config.config_args import default_config_file, load_config_from_file

__all__ = ["Launcher", "find_launcher", "told_precision", "told_threads"]

COMMANDS = {"accelerate", "accelerate-launch", "torchrun"}
MODULES = {"accelerate.commands.accelerate_cli", "accelerate.commands.launch", "torch.distributed.run"}


@dataclass(frozen=True)
class Launcher:
    """The parent of this process, where it is a launcher."""

    pid: int
    words: tuple[str, ...]
    """Of its command line."""
    environment: dict[str, str]
    """That it was started with; empty where the system does not say."""

    def option(self, name: str) -> str | None:
        """The value of an option like ``--mixed_precision``, however it is spelt; None where it is absent."""
        for word, following in zip(self.words, (*self.words[1:], ""), strict=True):
            option, equals, value = word.partition("=")
            if option.replace("-", "_") == name.replace("-", "_"):
                return value if equals else following
        return None


def find_launcher(parent: int) -> Launcher | None:
    """Look at the command line of a process; None where it is no launcher, or the system does not say."""
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
    return Launcher(parent, words, environment)


@functools.cache
def launcher() -> Launcher | None:
    """That of this process, looked for once, as long as it surely lives."""
    return find_launcher(os.getppid())


def told_precision() -> str | None:
    """The precision that the user gave accelerate: by option, variable or configuration; None for its default."""
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

"""Commands in real processes, forked from one that has imported torch already: a second in place of five."""

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from training.tools.reliability.launch import Launch


def launched(folder: Path, *commands: Sequence[object], processes: int = 1) -> str:
    """Run commands one after the other, each a module or a script and its options, and return what they say."""
    folder.mkdir(parents=True, exist_ok=True)
    words = json.dumps([[str(word) for word in command] for command in commands])
    launch = Launch([words], folder / "log", processes, main=run)
    assert not any(launch.end()), launch.log.read_text()
    return launch.log.read_text()


def run(argv: list[str]) -> None:
    """What each process does."""
    for sys.argv in json.loads(argv[0]):
        call = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
        call(sys.argv[0], run_name="__main__")

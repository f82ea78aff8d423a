"""A headless Chromium of the system, and the page of ``slotcon-hub explore`` in a process of its own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
expect = playwright.expect

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT = 60_000  # ms: processors are shared


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser; without one, the tests are skipped."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: install one of {', '.join(NAMES)}, such as by apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def served(command: list[str], log: Path, **environment: str) -> Iterator[str]:
    """Start a program that serves the page, and yield the address that it prints."""
    with log.open("w") as out:
        ours = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(log.parent / "gradio")}
        env = os.environ | ours | environment
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=out, text=True, env=env
        )
        try:
            assert process.stdout
            for line in process.stdout:
                if found := re.match(r"open (http://127.0.0.1:\d+/)$", line.strip()):
                    yield found[1]
                    return
            pytest.fail(f"it was not served: {log.read_text()}")
        finally:
            process.terminate()
            process.communicate()

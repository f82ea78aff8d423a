"""All tests and benchmarks for a CUDA device in one command: ``python -m training.tools.gpu_session FOLDER``.

Each part is a command with a time limit. Successful parts are not repeated when the command is run again with the
same folder, so a session may be interrupted. It writes ``session.json`` and ``session.md``.
"""

import contextlib
import functools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from training.pretraining.curves import read_metrics
from training.tools.benchmark.data import make_images

__all__ = ["Part", "main", "parts"]

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-m")


@dataclass(frozen=True)
class Part:
    """A command with its output."""

    name: str
    command: tuple[str, ...]
    limit: int
    """Seconds."""
    new: Path | None = None
    """Folder of a run that starts anew: what an earlier try of the part has left there is removed."""
    killed: bool = False
    """Whether that run is killed by SIGKILL at its first checkpoint, to be resumed later."""
    read: Callable[[], dict[str, Any]] = dict
    """Reads results of the command as named values."""


def parts(folder: Path) -> Iterator[Part]:
    """Yield all parts, the most important first.

    Args:
        folder: of the session, with generated images and results.
    """
    yield Part("tests", (*PYTHON, "pytest", "-q", "-n0", "-m", "gpu", "-p", "no:cacheprovider"), 150)
    for precision, batches, prototypes, extra in (
        ("bf16", ("64", "128", "256"), "256", ()),
        ("bf16", ("128",), "2048", ()),
        ("fp16", ("128",), "256", ()),
        ("bf16", ("256",), "256", ("--grad-checkpointing",)),
        ("bf16", ("128",), "256", ("--compile",)),
        ("fp16", ("64", "256"), "2048", ()),
    ):
        name = "-".join(["step", precision, *batches, "K", prototypes, *(e.strip("-") for e in extra)])
        setting = f"--mixed-precision {precision} --num-prototypes {prototypes} --batch-sizes {' '.join(batches)}"
        result = folder / f"{name}-result.json"
        command = (*PYTHON, "training.benchmark", "step", *setting.split(), *extra, "--output", str(result))
        yield Part(name, command, 120, read=functools.partial(_rows, result))
    run, images = folder / "run", folder / "images"
    options = "--view-size 32 --num-prototypes 8 --hidden-dim 32 --out-dim 16 --batch-size 16 --epochs 4"
    options += " --warmup-epochs 0.5 --save-every 1 --log-every 1 --workers 2"
    train = (sys.executable, "training/pretrain.py", "demo", "--data", str(images / "train"), *options.split())
    for name, place in (("train", run / "whole"), ("train-killed", run / "killed"), ("resume", run / "killed")):
        resume = ("--resume",) if name == "resume" else ()
        command = (*train, "--output", str(place), *resume)
        new = None if resume else place
        yield Part(name, command, 90, new, name == "train-killed", functools.partial(_end, place))
    knn = ("training.evaluation.knn", "--models", "slotcon_nano", "--baseline", "--data", str(images))
    yield Part("knn", (*PYTHON, *knn), 60)
    script = "from slotcon_hub.cli import main; raise SystemExit(main())"
    concepts = ("concepts", "--model", "slotcon_nano_proto", "--images", str(images / "train"))
    yield Part("concepts", (sys.executable, "-c", script, *concepts, "--output", str(folder / "concepts")), 60)
    yield Part("loader", (*PYTHON, "training.benchmark", "data", "--rounds", "5"), 60)


def main(folder: tyro.conf.Positional[Path], minutes: float = 9.0, only: tuple[str, ...] = ()) -> None:
    """Run the parts missing in FOLDER in sequence, and write all results as JSON and Markdown.

    Args:
        folder: of the session; its successful parts are not repeated.
        minutes: time limit, at which the running part is killed.
        only: names of the parts to run; all by default.
    """
    folder = folder.absolute()
    end = time.monotonic() + 60 * minutes
    _make_images(folder / "images")
    for part in parts(folder):
        if _load(folder, part.name).get("ok") or (only and part.name not in only):
            continue
        left = int(end - time.monotonic())
        if left < 5:
            break
        print(f"{part.name} ...", flush=True)
        result = _run(part, folder, min(part.limit, left))
        (folder / f"{part.name}.json").write_text(json.dumps(result, indent=2) + "\n")
        print(f"    {'well' if result['ok'] else 'FAILED'}, {result['seconds']:.0f} s", flush=True)
    results = {part.name: _load(folder, part.name) for part in parts(folder)}
    session = {"machine": _machine(), "parts": results}
    (folder / "session.json").write_text(json.dumps(session, indent=2) + "\n")
    (folder / "session.md").write_text(_markdown(session))
    missing = [name for name, result in results.items() if not result.get("ok")]
    print(f"{folder / 'session.md'}" + (f"; not ended well: {', '.join(missing)}" if missing else ""))


def _run(part: Part, folder: Path, limit: int) -> dict[str, Any]:
    """Run a part within its limit or until Ctrl-C, then kill its remaining process group."""
    killed, start, log = False, time.monotonic(), folder / f"{part.name}.log"
    if part.new and part.new.exists():
        shutil.rmtree(part.new)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as output:
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while process.poll() is None and time.monotonic() - start < limit:
                if killed := part.killed and part.new is not None and any(part.new.glob("checkpoints/step-*")):
                    break
                time.sleep(0.05)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    result: dict[str, Any] = {"command": " ".join(part.command), "seconds": time.monotonic() - start, "code": code}
    result["ok"] = killed if part.killed else code == 0
    try:
        result["values"] = part.read()
    except (OSError, ValueError) as error:
        result |= {"ok": False, "values": {}, "problem": str(error)}
    return result | {"output": log.read_text()[-3000:]}


def _rows(result: Path) -> dict[str, Any]:
    return {"rows": json.loads(result.read_text())}


def _end(run: Path) -> dict[str, Any]:
    last = read_metrics(run / "metrics.jsonl")[-1]
    return {key: last[key] for key in ("step", "loss", "images_per_second", "data_wait", "memory_gb")}


def _load(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _make_images(folder: Path, side: int = 320, count: int = 64) -> None:
    """Two splits of two classes with the same images, since only speed is measured."""
    if folder.is_dir():
        return
    staging = folder.with_name(".images")
    shutil.rmtree(staging, ignore_errors=True)
    for number, file in enumerate(make_images(side, count)):
        for split in ("train", "validation"):
            place = staging / split / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.jpg").write_bytes(file)
    staging.rename(folder)


def _machine() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"no GPU ({platform.machine()} CPU)",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _markdown(session: dict[str, Any]) -> str:
    machine = session["machine"]
    lines = [
        f"{machine['device']}, {machine['cores']} cores, torch {machine['torch']}, Python {machine['python']}",
        "",
    ]
    lines += [
        "| setting | K | batch | ms a step | images/s | s a COCO epoch | of the matrix rate | GB |",
        "|---" * 8 + "|",
    ]
    for name, part in session["parts"].items():
        for row in part.get("values", {}).get("rows", []):
            numbers = f"{row['ms']:.0f} | {row['images_per_second']:.0f} | {row['coco_epoch_seconds']:.0f}"
            share = f"{row['rate_share']:.0%}"
            lines.append(f"| {name} | {row['K']} | {row['batch']} | {numbers} | {share} | {row['gb']:.1f} |")
    lines += ["", "| part | ended well | seconds |", "|---|---|---|"]
    for name, part in session["parts"].items():
        said = "not run" if not part else "yes" if part["ok"] else f"no ({part['code']})"
        lines.append(f"| {name} | {said} | {part.get('seconds', 0):.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(main, prog="python -m training.tools.gpu_session")

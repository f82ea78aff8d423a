"""Options common to several commands."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = [
    "PRECISIONS",
    "add_device_options",
    "add_model_options",
    "check_output",
    "number",
    "report_unreadable",
    "stems",
]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MODEL = "prototype model by name, such as slotcon_r50_proto.coco_800ep, or the folder of a run or of its export"


def add_model_options(
    parser: argparse.ArgumentParser, output: str, model: str = _MODEL, result: str = "folder of the results"
) -> None:
    """Add the options of a command that applies a model: model, output, device and precision."""
    parser.add_argument("--model", required=True, help=model)
    parser.add_argument("--output", type=Path, default=Path(output), help=f"{result} ({output})")
    add_device_options(parser)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of how a model is applied: device and precision."""
    parser.add_argument("--device", type=_device, default="auto", help="cpu or cuda (default: cuda if available)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the network (float32)")


def number(least: int) -> Callable[[str], int]:
    """Create a type for argparse: integers of at least ``least``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return parse


def _device(text: str) -> torch.device:
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: use cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no CUDA device: use cpu")
    return device


def check_output(output: Path, *, folder: bool = True) -> None:
    """Check that an output can be created, as all commands create missing parent folders.

    Args:
        output: value of --output.
        folder: whether the output is a folder; an existing file is an error then.

    Raises:
        ValueError: a file is in the way.
    """
    ways = (output, *output.parents) if folder else output.parents
    if file := next((path for path in ways if path.exists() and not path.is_dir()), None):
        raise ValueError(f"{file} is a file, but must be a folder: choose another --output")


def report_unreadable(unreadable: list[tuple[str, str]], total: int) -> None:
    """Print the skipped images with their reasons on stderr.

    Raises:
        ValueError: all images were skipped.
    """
    for name, reason in unreadable:
        print(f"skipped, since it cannot be read: {name} ({reason})", file=sys.stderr)
    if len(unreadable) == total:
        raise ValueError(f"none of the {total} images can be read: give other images")


def stems(images: list[Path]) -> list[str]:
    """The stems of the images; repeated ones get a number."""
    names: list[str] = []
    taken: set[str] = set()  # some file systems ignore case
    for path in images:
        name, count = path.stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name.casefold())
        names.append(name)
    return names

"""Options that several commands share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["PRECISIONS", "add_model_options", "check_output", "number", "report_unreadable"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MODEL = "prototype model by name, such as slotcon_r50_proto.coco_800ep, or the folder of a run or of its export"


def add_model_options(parser: argparse.ArgumentParser, output: str) -> None:
    """Add what every command needs that applies a model: which, where, how, and the folder of the results."""
    parser.add_argument("--model", required=True, help=_MODEL)
    parser.add_argument("--output", type=Path, default=Path(output), help=f"folder of the results ({output})")
    parser.add_argument("--device", type=_device, default="auto", help="cpu or cuda (cuda where there is one)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the network (float32)")


def number(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``least`` on."""

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
        raise argparse.ArgumentTypeError(f"{text!r} is none: use cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no CUDA device: use cpu")
    return device


def check_output(output: Path, *, folder: bool = True) -> None:
    """Refuse an output that cannot be made; folders that are missing on the way to it are made, by all commands.

    Args:
        output: what --output names.
        folder: it is to be one; else what is there is the command's concern.

    Raises:
        ValueError: a file is in the way.
    """
    ways = (output, *output.parents) if folder else output.parents
    if file := next((path for path in ways if path.exists() and not path.is_dir()), None):
        raise ValueError(f"{file} is a file, where a folder is needed: choose another --output")


def report_unreadable(unreadable: list[tuple[str, str]], total: int) -> None:
    """Name the images that were skipped, each with the reason, on stderr.

    Raises:
        ValueError: they are all.
    """
    for name, reason in unreadable:
        print(f"skipped, since it cannot be read: {name} ({reason})", file=sys.stderr)
    if len(unreadable) == total:
        raise ValueError(f"none of the {total} images can be read: name others")

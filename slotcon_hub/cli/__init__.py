"""The command ``slotcon-hub``; each module here has some of its subcommands."""

import argparse
import os
import sys
from collections.abc import Sequence

from slotcon_hub import __version__
from slotcon_hub.cli import concepts, embed, explore, export, pca, publish, segment, weights
from slotcon_hub.cli.help import Help
from slotcon_hub.cpu import keep_freed_memory, use_cores

__all__ = ["main"]

_ALL = "SlotCon's backbones and semantic prototypes: import, apply, export and publish models by name."
_EXAMPLES = """\
examples:
  slotcon-hub import ckpt_epoch_800.pth slotcon_r50.coco_800ep
  slotcon-hub segment --model slotcon_r50_proto.coco_800ep image.jpg
  slotcon-hub export slotcon_r50.coco_800ep --to detectron2

`slotcon-hub COMMAND --help` explains a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; by default those of the process.

    Returns:
        The exit code: 0, or 1 after an error, printed as one sentence on stderr. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        use_cores()
    try:
        options.command(options)
    except (ValueError, RuntimeError, OSError, ImportError, MemoryError) as error:
        message = " ".join((_message(error) or type(error).__name__).split())
        print(f"slotcon-hub: {message}", file=sys.stderr)
        return 1
    return 0


def _message(error: BaseException) -> str:
    """Message of an error, without its errno."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("slotcon-hub", description=_ALL, epilog=_EXAMPLES, formatter_class=Help)
    parser.add_argument("--version", action="version", version=f"slotcon-hub {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (weights, segment, concepts, embed, pca, explore, export, publish):
        module.add_commands(commands)
    return parser

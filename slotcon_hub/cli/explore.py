"""The command ``slotcon-hub explore``."""

import argparse
import socket
from pathlib import Path
from typing import Any

from slotcon_hub.cli.help import Help
from slotcon_hub.cli.options import PRECISIONS, add_device_options, number
from slotcon_hub.explore.app import launch, load_models

__all__ = ["add_commands"]

_EXPLORE = """\
Serve a page on which one tries models: drop an image, and see its groups with numbers, areas and similarities, and
the principal components of its features. A click on a group shows how similar all pixels are to its prototype,
the most similar segments in the folder --images, and how often it is used there. Two models are seen side by side.

The page listens on this machine alone, and nothing leaves it. The concepts of --images are made once, and kept in
$SLOTCON_HUB_CACHE, or in the user's cache. Needs pip install "path/to/slotcon_hub[explore]"."""
_EXAMPLES = """\
examples:
  slotcon-hub explore --model slotcon_nano_proto
  slotcon-hub explore --model slotcon_r50_proto.coco_800ep RUN --images coco/val2017"""
_MODEL = "prototype models by name, such as slotcon_r50_proto.coco_800ep, or folders of runs or of their exports"
_IMAGES = """folder of images, at any depth, or the folder that `slotcon-hub concepts` wrote for the model (default:
scenes that come with this package)"""


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers of argparse."""
    parser = commands.add_parser(
        "explore",
        help="try models on a page in the browser",
        description=_EXPLORE,
        epilog=_EXAMPLES,
        formatter_class=Help,
    )
    parser.add_argument("--model", required=True, nargs="+", metavar="MODEL", help=_MODEL)
    parser.add_argument("--images", type=Path, help=_IMAGES)
    add_device_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (127.0.0.1)")
    parser.add_argument("--port", type=number(1), help="port to listen on (the first free one from 7860 on)")
    parser.set_defaults(command=_explore)


def _explore(options: argparse.Namespace) -> None:
    _check_address(options.host, options.port)
    precision = PRECISIONS[options.precision]
    models = load_models(options.model, options.images, device=options.device, precision=precision)
    launch(models, host=options.host, port=options.port)


def _check_address(host: str, port: int | None) -> None:
    """Check, before models are loaded, that one can listen there."""
    try:
        socket.create_server((host, port or 0)).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"{host}, port {port or 'any'}, is not free ({reason}): give another --port or --host"
        ) from None

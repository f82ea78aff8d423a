"""The command ``slotcon-hub``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from slotcon_hub import __version__, cli_concepts, store, weights
from slotcon_hub.importing import import_checkpoint
from slotcon_hub.table import print_table

__all__ = ["main"]

_IMPORT = """\
Put the teacher of a checkpoint into the local store, from where pretrained=True loads it by name, offline.

CHECKPOINT is any of
  an authors' full checkpoint, or a backbone-only file (.pth)
  a file of safetensors
  the folder of a run, of one of its checkpoints, or of its export

NAME is <architecture>.<tag>, as `slotcon-hub list` shows them, or one of your own such as slotcon_r18.mine.
Projector and prototypes, where the checkpoint has them, come under the architecture <...>_proto."""
_IMPORT_EXAMPLE = "example: slotcon-hub import ckpt_epoch_800.pth slotcon_r50.coco_800ep"
_LIST = """\
Show the published weights and those in the local store, with what the authors report: COCO box and mask AP of
Mask R-CNN R50-FPN 1x."""
_HOME = "The store is $SLOTCON_HUB_HOME, or a folder among the user's data; `slotcon-hub list` names it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; by default those of the process.

    Returns:
        The exit code: 0, or 1 after an error, which is one sentence on stderr. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        message = " ".join((str(error) or type(error).__name__).split())
        print(f"slotcon-hub: {message}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("slotcon-hub", description="Weights of SlotCon, by name.", epilog=_HOME)
    parser.add_argument("--version", action="version", version=f"slotcon-hub {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    bring = commands.add_parser(
        "import",
        help="put a checkpoint into the local store",
        description=_IMPORT,
        epilog=f"{_IMPORT_EXAMPLE}\n\n{_HOME}",
        formatter_class=raw,
    )
    bring.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    bring.add_argument("name", metavar="NAME")
    bring.set_defaults(command=_import)
    show = commands.add_parser("list", help="show all weights and where they are", description=_LIST, epilog=_HOME)
    show.set_defaults(command=_list)
    cli_concepts.add_commands(commands)
    return parser


def _import(options: argparse.Namespace) -> None:
    done = import_checkpoint(options.checkpoint, options.name)
    kinds = {
        "official": "an authors' full checkpoint",
        "slotcon": "the state of a SlotCon",
        "prototypes": "a backbone with projector and prototypes",
        "backbone": "a backbone alone",
    }
    print(f"{options.checkpoint} is {kinds[done.kind]}; its teacher is in the store. This works now:\n")
    print("import slotcon_hub\nimport timm\n")
    for name, folder in done.folders.items():
        known = weights.find(*name.split(".", 1)) is not None
        print(f'timm.create_model("{name if known else f"local-dir:{folder}"}", pretrained=True)')


def _list(options: argparse.Namespace) -> None:
    rows = [("NAME", "TAG", "DATA", "PROTOTYPES", "BOX/MASK AP", "WEIGHTS")]
    for row in weights.ROWS:
        prototypes = str(row.prototypes) if row.has_prototypes else "-"
        reported = f"{row.box_ap} / {row.mask_ap}"
        rows.append((row.architecture, row.tag, row.data, prototypes, reported, _where(row)))
    for name in store.names():
        architecture, tag = name.split(".", 1)
        if weights.find(architecture, tag) is None:
            rows.append((architecture, tag, "-", "-", "-", "store"))
    print_table(rows)
    print(f"\nstore: {store.home()}")


def _where(row: weights.Weights) -> str:
    if store.find(row.name) is not None:
        return "store"
    if isinstance(try_to_load_from_cache(weights.repository(row.name), store.WEIGHTS), str):
        return "Hub, downloaded"
    return "nowhere yet" if row.sha256 is None else "Hub"

"""The commands ``slotcon-hub import`` and ``list``."""

import argparse
import textwrap
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from slotcon_hub.cli.help import Help
from slotcon_hub.cli.table import print_table
from slotcon_hub.models.importing import import_checkpoint
from slotcon_hub.weights import store, table

__all__ = ["add_commands"]

_IMPORT = """\
Import the teacher of a checkpoint into the local store, from which pretrained=True loads it by name, offline.

CHECKPOINT is any of
  an authors' full checkpoint, or a backbone-only file (.pth)
  a safetensors file
  the folder of a run, of one of its checkpoints, or of its export

NAME is <architecture>.<tag>, as shown by `slotcon-hub list`, or a new one such as slotcon_r18.mine; without a tag,
the default tag is used. Projector and prototypes, if the checkpoint has them, come under
<architecture>_proto.<tag>."""
_IMPORT_EXAMPLE = "example: slotcon-hub import ckpt_epoch_800.pth slotcon_r50.coco_800ep"
_LIST = "List the weights of the table and of the local store, and where they are."
_HOME = "The store is $SLOTCON_HUB_HOME, or a folder in the user's data folder; `slotcon-hub list` prints it."


def add_commands(commands: Any) -> None:
    """Add the subcommands to those of the parser."""
    bring = commands.add_parser(
        "import",
        help="import a checkpoint into the local store",
        description=_IMPORT,
        epilog=f"{_IMPORT_EXAMPLE}\n\n{_HOME}",
        formatter_class=Help,
    )
    bring.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    bring.add_argument("name", metavar="NAME")
    bring.add_argument("--force", action="store_true", help="replace this name in the store")
    bring.set_defaults(command=_import)
    show = commands.add_parser(
        "list", help="list all weights and where they are", description=_LIST, epilog=_HOME, formatter_class=Help
    )
    show.set_defaults(command=_list)


def _import(options: argparse.Namespace) -> None:
    done = import_checkpoint(options.checkpoint, options.name, force=options.force)
    kinds = {
        "official": "an authors' full checkpoint",
        "slotcon": "the state of a SlotCon",
        "prototypes": "a backbone with projector and prototypes",
        "backbone": "a backbone alone",
    }
    print(f"{options.checkpoint} is {kinds[done.kind]}; its teacher is in the store. This works now:\n")
    print("import slotcon_hub\nimport timm\n")
    for name in done.folders:
        print(f'timm.create_model("{name}", pretrained=True)')


def _list(options: argparse.Namespace) -> None:
    rows = [("MODEL", "TAG", "DATA", "PROTOTYPES", "RESULT", "WEIGHTS")]
    legend: dict[str, str] = {}
    for row in table.ROWS:
        prototypes = str(row.prototypes) if row.has_prototypes else "-"
        rows.append((row.architecture, row.tag, row.data, prototypes, _result(row, legend), _location(row)))
    for name in store.names():
        architecture, tag = name.split(".", 1)
        if table.find(architecture, tag) is None:
            rows.append((architecture, tag, "-", "-", "-", "store"))
    print_table(rows)
    print()
    for kind, meaning in legend.items():
        print(textwrap.fill(f"{kind}: {meaning}", width=100, subsequent_indent="  "))
    print(f"store: {store.location()}")


def _result(row: table.Weights, legend: dict[str, str]) -> str:
    """The first comparable results of a row, or of its backbone; their meaning is added to the legend."""
    results = row.results or row.backbone.results
    if not results:
        return "-"
    first = results[0]
    alike = [r for r in results if (r.dataset, r.protocol) == (first.dataset, first.protocol)]
    kind = first.metric.removesuffix(" accuracy").split()[-1]
    metrics = " / ".join(r.metric for r in alike)
    legend[kind] = f"{metrics} on {first.dataset}, {first.source} ({first.protocol})"
    return f"{kind} {'/'.join(f'{r.value:.1f}' for r in alike)}"


def _location(row: table.Weights) -> str:
    if store.find(row.name) is not None:
        return "store"
    if table.packaged(row) is not None:
        return "package"
    if isinstance(try_to_load_from_cache(table.repository(row.name), store.WEIGHTS), str):
        return "downloaded"
    return "Hub" if table.trusted(row) else "not yet"

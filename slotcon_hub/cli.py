"""The command ``slotcon-hub``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from slotcon_hub import __version__, store, weights
from slotcon_hub.cli_concepts import add_concepts
from slotcon_hub.cli_segment import add_segment
from slotcon_hub.importing import import_checkpoint
from slotcon_hub.loading import load
from slotcon_hub.table import print_table
from slotcon_hub.targets import TARGETS, save_as

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
_EXPORT = """\
Write a pretrained model for another library: the file or folder that it loads.

  torchvision  a state dict for torchvision.models.resnet50 and the like (.pth)
  detectron2   for MODEL.WEIGHTS (.pkl)
  mmseg        for init_cfg of MMSegmentation's and MMDetection's ResNet (.pth)
  onnx         batch, height and width free, checked with ONNX Runtime; needs "slotcon-hub[onnx]"
  timm         a folder for timm.create_model("local-dir:..."), which can be published as it is

The first three take ResNets without a deep stem, and of a prototype model its backbone.
NAME is <architecture>.<tag>, as `slotcon-hub list` shows them, the folder of a model, or hf-hub:<owner>/<name>."""
_EXPORT_EXAMPLE = "example: slotcon-hub export slotcon_r50_proto.coco_800ep --to onnx --dense"
_LIST = "Show the weights of the table and those in the local store, and where they are."
_AP = """AP: COCO box/mask AP of Mask R-CNN R50-FPN 1x on the backbone, fine-tuned, as the authors report it."""
_ALL = "SlotCon's backbones and semantic prototypes: weights by name, and what to do with them."
_EXAMPLES = """\
examples:
  slotcon-hub import ckpt_epoch_800.pth slotcon_r50.coco_800ep
  slotcon-hub export slotcon_r50.coco_800ep --to detectron2
  slotcon-hub concepts --model slotcon_r50_proto.coco_800ep --images coco/val2017
  slotcon-hub segment --model slotcon_r50_proto.coco_800ep street.jpg

`slotcon-hub COMMAND --help` tells more of a command."""
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
    except (ValueError, RuntimeError, OSError, ImportError, MemoryError) as error:
        message = " ".join((str(error) or type(error).__name__).split())
        print(f"slotcon-hub: {message}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("slotcon-hub", description=_ALL, epilog=_EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"slotcon-hub {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
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
    _add_export(commands)
    show = commands.add_parser("list", help="show all weights and where they are", description=_LIST, epilog=_HOME)
    show.set_defaults(command=_list)
    add_concepts(commands)
    add_segment(commands)
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


def _add_export(commands: Any) -> None:
    deliver = commands.add_parser(
        "export",
        help="write a model for torchvision, Detectron2, MMSegmentation, ONNX or timm",
        description=_EXPORT,
        epilog=_EXPORT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    deliver.add_argument("name", metavar="NAME")
    deliver.add_argument("--to", required=True, choices=TARGETS, help="the library")
    deliver.add_argument("--output", type=Path, metavar="PATH", help="by default NAME.<library and kind>, here")
    deliver.add_argument("--force", action="store_true", help="replace what is there")
    deliver.add_argument("--dense", action="store_true", help="onnx: the map, not its mean over the cells")
    deliver.add_argument("--size", type=int, help="onnx: side of the pictures that it is checked with, in pixels")
    deliver.add_argument("--opset", type=int, help="onnx: version of the operators (default: 18)")
    deliver.set_defaults(command=_export, error=deliver.error)


def _export(options: argparse.Namespace) -> None:
    given = {key: getattr(options, key) for key in ("size", "opset") if getattr(options, key) is not None}
    if options.to != "onnx" and (given or options.dense):
        options.error("--dense, --size and --opset are of ONNX alone: leave them out, or use --to onnx")
    named = Path(options.name.split(":")[-1]).resolve().name
    path = options.output or Path(f"{named}{TARGETS[options.to].suffix}")
    net = load(options.name, **({"global_pool": ""} if options.dense else {})).eval()
    usage = save_as(options.to, net, path, force=options.force, **given)
    print(f"{path} is written, for\n\n{usage}")


def _list(options: argparse.Namespace) -> None:
    rows = [("MODEL", "TAG", "DATA", "PROTOTYPES", "RESULT", "WEIGHTS")]
    for row in weights.ROWS:
        prototypes = str(row.prototypes) if row.has_prototypes else "-"
        rows.append((row.architecture, row.tag, row.data, prototypes, _result(row), _where(row)))
    for name in store.names():
        architecture, tag = name.split(".", 1)
        if weights.find(architecture, tag) is None:
            rows.append((architecture, tag, "-", "-", "-", "store"))
    print_table(rows)
    print(f"\n{_AP}\nstore: {store.home()}")


def _result(row: weights.Weights) -> str:
    """The first results of a row, or of its backbone, as far as they belong together."""
    results = row.results or row.backbone.results
    if not results:
        return "-"
    first = results[0]
    alike = [f"{r.value:.1f}" for r in results if (r.dataset, r.protocol) == (first.dataset, first.protocol)]
    return f"{first.metric.split()[-1]} {'/'.join(alike)}"


def _where(row: weights.Weights) -> str:
    if store.find(row.name) is not None:
        return "store"
    if weights.packaged(row) is not None:
        return "package"
    if isinstance(try_to_load_from_cache(weights.repository(row.name), store.WEIGHTS), str):
        return "downloaded"
    return "Hub" if weights.trusted(row) else "nowhere yet"

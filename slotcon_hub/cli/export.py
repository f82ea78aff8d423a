"""The command ``slotcon-hub export``."""

import argparse
from pathlib import Path
from typing import Any

from slotcon_hub.cli.help import Help
from slotcon_hub.cli.options import check_output, number
from slotcon_hub.export.targets import TARGETS, check_free, save_as
from slotcon_hub.models.loading import load

__all__ = ["add_commands"]

_EXPORT = """\
Write a pretrained model as a file or folder that another library loads.

  torchvision  a state dict for torchvision.models.resnet50 and others (.pth)
  detectron2   for MODEL.WEIGHTS (.pkl)
  mmseg        for init_cfg of MMSegmentation's and MMDetection's ResNet (.pth)
  onnx         batch, height and width free (of a model for one size, batch alone), checked with ONNX Runtime;
               needs pip install "path/to/slotcon_hub[onnx]"
  timm         a folder for timm.create_model("local-dir:..."), ready to be published

The first three need ResNets without a deep stem, and take the backbone alone, without prototypes or classifier.
NAME is <architecture>.<tag>, as shown by `slotcon-hub list`; the folder of a model; the folder of a run, for its
backbone (with --dense its prototype model); or hf-hub:<owner>/<name>."""
_EXPORT_EXAMPLE = "example: slotcon-hub export slotcon_r50_proto.coco_800ep --to onnx --dense"


def add_commands(commands: Any) -> None:
    """Add the subcommand to those of the parser."""
    deliver = commands.add_parser(
        "export",
        help="write a model for torchvision, Detectron2, MMSegmentation, ONNX or timm",
        description=_EXPORT,
        epilog=_EXPORT_EXAMPLE,
        formatter_class=Help,
    )
    deliver.add_argument("name", metavar="NAME")
    deliver.add_argument("--to", required=True, choices=TARGETS, help="the library")
    deliver.add_argument(
        "--output", type=Path, metavar="PATH", help="by default NAME.<library and kind> in the current folder"
    )
    deliver.add_argument("--force", action="store_true", help="replace an existing file or folder")
    deliver.add_argument("--dense", action="store_true", help="onnx: output the map, not its mean over the cells")
    deliver.add_argument("--size", type=number(1), help="onnx: side of the images that it is checked with")
    deliver.add_argument("--opset", type=int, help="onnx: version of the operators (default: 18)")
    deliver.set_defaults(command=_export, error=deliver.error)


def _export(options: argparse.Namespace) -> None:
    given = {key: getattr(options, key) for key in ("size", "opset") if getattr(options, key) is not None}
    if options.to != "onnx" and (given or options.dense):
        options.error("--dense, --size and --opset are for ONNX only: leave them out, or use --to onnx")
    named = Path(options.name.split(":")[-1]).resolve().name
    path = options.output or Path(f"{named}{TARGETS[options.to].suffix}")
    check_output(path, folder=False)
    check_free(path, options.force)
    dense: dict[str, Any] = {"part": "prototypes", "global_pool": ""} if options.dense else {}
    net = load(options.name, **dense).eval()
    usage = save_as(options.to, net, path, force=options.force, **given)
    print(f"{path} is written; load it by\n\n{usage}")

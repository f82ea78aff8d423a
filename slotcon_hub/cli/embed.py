"""The command ``slotcon-hub embed``."""

import argparse
import os
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize
from tqdm import tqdm

from slotcon_hub import __version__
from slotcon_hub.cli.help import Help
from slotcon_hub.cli.launched import join_process_group
from slotcon_hub.cli.options import PRECISIONS, add_model_options, check_output, number, report_unreadable
from slotcon_hub.concepts.discover import crops
from slotcon_hub.concepts.feature_file import DTYPES, FeatureWriter
from slotcon_hub.concepts.inference import CenterCrop, weights_digest
from slotcon_hub.distributed import gather_objects, rank, world_size
from slotcon_hub.images import ImageFiles, printable
from slotcon_hub.models.loading import load
from slotcon_hub.models.maps import load_map
from slotcon_hub.models.sizes import resize_to_model

__all__ = ["add_commands"]

_EMBED = """\
Write the features of all images of a folder into one file: of any timm model, pooled or as maps.

Pooled features are those that the model returns, of images that are resized and cropped as it is evaluated. With
--dense it is the last map, of images whose short side is resized to --size pixels and cut to the central square.

OUTPUT is a file of safetensors: "features", a row for each image, and "state", 1 for each row that is written and 2
for an image that cannot be read. Its metadata has the names of the images below the folder, as a list, and the
configuration, both in JSON. The commands in training.evaluation take it in place of a model (--models OUTPUT).

It is written row by row, as OUTPUT.partial until it is complete: the memory needed is that of a batch. The same
command goes on where an interrupted one stopped. Started by torchrun or accelerate launch, it shares the images."""
_EXAMPLES = """\
examples:
  slotcon-hub embed --model slotcon_nano --images photos --output pooled.safetensors
  slotcon-hub embed --model resnet50 --images coco --dense --size 448 --dtype float16 --output maps.safetensors"""
_TIMM = "timm model by name, or the folder of a run or of its export"


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers of argparse."""
    parser = commands.add_parser(
        "embed",
        help="write the features of a folder of images into a file",
        description=_EMBED,
        epilog=_EXAMPLES,
        formatter_class=Help,
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images, at any depth")
    add_model_options(parser, "features.safetensors", model=_TIMM, result="file of the features")
    parser.add_argument("--force", action="store_true", help="replace OUTPUT, if it is there")
    parser.add_argument("--dense", action="store_true", help="write maps, not pooled features")
    parser.add_argument("--size", type=number(1), help="side of the images in pixels, with --dense (448)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the file (float32)")
    parser.add_argument("--batch-size", type=number(1), default=32, help="images at a time (32)")
    parser.add_argument("--workers", type=number(0), default=0, help="processes that decode (0: this one does it)")
    parser.set_defaults(command=_embed, error=parser.error)


class _Pooled(nn.Module):
    """uint8 crops to the features that a timm model without a classifier returns."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model: Any = load(name, num_classes=0).eval()
        config = resolve_model_data_config(self.model)
        self.mean, self.std = config["mean"], config["std"]

    def forward(self, images: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        standardized = normalize(images.to(device).float() / 255, self.mean, self.std)
        return self.model(resize_to_model(self.model, standardized)).float()


def _embed(options: argparse.Namespace) -> None:
    if options.size and not options.dense:
        options.error("--size is of maps: add --dense, or leave it out")
    check_output(options.output, folder=False)
    if options.output.is_dir():
        raise ValueError(
            f"{options.output} is a folder: name a file in it, such as {options.output / 'x.safetensors'}"
        )
    if options.output.exists() and not options.force:
        raise ValueError(f"{options.output} already exists: add --force to replace it, or choose another --output")
    files = ImageFiles(options.images)
    with join_process_group(options.device) as device:
        _write(options, files, device)


def _write(options: argparse.Namespace, files: ImageFiles, device: torch.device) -> None:
    """Write the share of this process; the first one creates and finishes the file."""
    if options.dense:
        size = options.size or 448
        model: nn.Module = load_map(options.model, size).to(device)
        crop = CenterCrop(size, size, "bilinear")
    else:
        model = _Pooled(options.model).to(device)
        crop = CenterCrop.from_model(model.model)
    names = [printable(os.path.relpath(path, options.images)) for path in files.paths]
    first = _features(model, torch.zeros(1, 3, crop.side, crop.side, dtype=torch.uint8), options)
    writer = FeatureWriter(options.output, names, first.shape[1:], _config(options, model, crop))
    if rank() == 0 and (written := writer.create()):
        print(f"{written:,} of {len(files):,} images are in {writer.partial}: going on with the others")
    _wait()
    batches = crops(files, crop, batch_size=options.batch_size, workers=options.workers, pending=writer.pending)
    unreadable = []
    for batch in tqdm(batches, "images", unit="batch", disable=rank() > 0):
        unreadable += batch.unreadable
        features = _features(model, batch.crops, options)[: len(batch.numbers)]
        writer.write(batch.numbers, features, [index for index, _ in batch.unreadable])
    found = dict(one for process in gather_objects(unreadable) for one in process)
    if rank() == 0:
        reasons = [(files.name(index), found.get(index, "by an earlier call")) for index in writer.unreadable()]
        report_unreadable(reasons, len(files))
        writer.finish()
        size_of = options.output.stat().st_size / 1e6
        shape = " x ".join(map(str, first.shape[1:]))
        print(f"{options.output} has the features of {len(files):,} images, {shape} each, in {size_of:,.1f} MB")


@torch.inference_mode()
def _features(model: nn.Module, images: Tensor, options: argparse.Namespace) -> Tensor:
    precision = PRECISIONS[options.precision]
    device = next(model.parameters()).device
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        return model(images).float()


def _config(options: argparse.Namespace, model: Any, crop: CenterCrop) -> dict[str, Any]:
    """What decides the features: a file is not gone on with under another one."""
    config = {
        "model": options.model,
        "weights": weights_digest(model),
        "images": printable(options.images.absolute()),
        "kind": "dense" if options.dense else "pooled",
        "dtype": options.dtype,
        "resize": crop.resize,
        "crop": crop.side,
        "interpolation": crop.interpolation,
        "mean": list(model.mean),
        "std": list(model.std),
        "precision": options.precision,
        "batch_size": options.batch_size,
        "versions": {"slotcon_hub": __version__, "torch": torch.__version__, "timm": timm.__version__},
    }
    return config | (model.describe(crop.side) if options.dense else {})


def _wait() -> None:
    """For all processes."""
    if world_size() > 1:
        dist.barrier()

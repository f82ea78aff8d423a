"""The command ``slotcon-hub concepts``."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from slotcon_hub.cli.help import Help
from slotcon_hub.cli.launched import join_process_group
from slotcon_hub.cli.options import PRECISIONS, add_model_options, check_output, number, report_unreadable
from slotcon_hub.cli.table import print_table
from slotcon_hub.concepts.discover import Batch, Concepts, crops, discover
from slotcon_hub.concepts.gallery import INDEX, NUMBERS, Gallery, ranges
from slotcon_hub.concepts.inference import CenterCrop, load_prototypes, weights_digest
from slotcon_hub.concepts.stopwatch import Stopwatch
from slotcon_hub.distributed import gather_objects, rank
from slotcon_hub.files import atomic_write
from slotcon_hub.images import ImageFiles, printable

__all__ = ["add_commands"]

_CONCEPTS = """\
Show what each prototype stands for: the segments most similar to it among all that belong to it.

Every image is resized and cropped as for evaluation (for 224 pixels: short side 256, central 224 x 224).
Every pixel belongs to the prototype that is most similar to it; a segment is all pixels of an image that belong to
one prototype. Its feature, the average projection of its pixels, is compared with the prototype by cosine.

The folder OUTPUT gets pages of images with the segments in red, index.html to browse them, and concepts.json with
all numbers (boxes x0, y0, x1, y1 in pixels of the crop; x1, y1 exclusive). Memory depends on the segments shown,
not on the number of images. --workers decodes in other processes. Started by torchrun or accelerate launch, the
command divides the images among the processes, with the same result."""
_EXAMPLES = """\
examples:
  slotcon-hub concepts --model slotcon_r50_proto.coco_800ep --images coco/val2017
  torchrun --nproc-per-node 8 --no-python slotcon-hub concepts --model slotcon_r50_proto.coco_800ep --images coco"""
_WHOLE = "group: as above; image: each image is one segment, as in the paper for ImageNet (default: group)"
_SHOWN = 5  # prototypes in the printed table


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers of argparse."""
    parser = commands.add_parser(
        "concepts",
        help="show what prototypes stand for in a folder of images",
        description=_CONCEPTS,
        epilog=_EXAMPLES,
        formatter_class=Help,
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images, at any depth")
    add_model_options(parser, output="concepts")
    parser.add_argument("--force", action="store_true", help="replace the concepts in OUTPUT")
    parser.add_argument("--segment", choices=["group", "image"], default="group", help=_WHOLE)
    parser.add_argument("--top", type=number(1), default=10, help="segments shown per prototype (10)")
    parser.add_argument("--per-page", type=number(1), default=10, help="prototypes per page (10)")
    parser.add_argument("--batch-size", type=number(1), default=32, help="images per batch (32)")
    parser.add_argument("--workers", type=number(0), default=0, help="processes that decode (0: this process)")
    parser.set_defaults(command=_concepts)


def _concepts(options: argparse.Namespace) -> None:
    _check_output(options.output, options.images, options.force)
    files = ImageFiles(options.images)
    with join_process_group(options.device) as device:
        if rank() > 0:
            _discover(options, files, device)
            return
        with atomic_write(options.output) as folder:
            concepts, weights, crop, watch = _discover(options, files, device)
            folder.mkdir()
            with watch.measure("drawing"):
                _draw(options, files, concepts, weights, crop, folder)
    _print(concepts, crop, watch)
    print(f"open {options.output / INDEX} to browse them")


def _discover(
    options: argparse.Namespace, files: ImageFiles, device: torch.device
) -> tuple[Concepts, str, CenterCrop, Stopwatch]:
    """Find the concepts, and the digest of the weights; rank 0 gets the concepts of all processes."""
    if len(set(gather_objects(files.digest()))) > 1:
        raise ValueError(f"the processes find different images in {options.images}: put the same on all machines")
    model = load_prototypes(options.model).to(device)
    crop, watch = CenterCrop.from_model(model), Stopwatch(device)
    batches = crops(files, crop, batch_size=options.batch_size, workers=options.workers)
    concepts = discover(
        model,
        _progress(batches),
        top=options.top,
        whole=options.segment == "image",
        precision=PRECISIONS[options.precision],
        watch=watch,
    )
    for other in gather_objects(concepts)[1:]:
        concepts.merge(other)
    if rank() == 0:
        report_unreadable([(files.name(number), reason) for number, reason in concepts.unreadable], len(files))
    return concepts, weights_digest(model), crop, watch


def _draw(
    options: argparse.Namespace, files: ImageFiles, concepts: Concepts, weights: str, crop: CenterCrop, folder: Path
) -> None:
    """Write the pages, their index and the numbers into a folder."""
    facts = {
        "model": options.model,
        "weights": weights,
        "images": printable(options.images),
        "segment": options.segment,
        "top": options.top,
        "resize": crop.resize,
        "crop": crop.side,
        "interpolation": crop.interpolation,
        "precision": options.precision,
        "device": options.device.type,
    }
    gallery = Gallery(concepts, files, options.images, crop, facts, options.per_page)
    for _ in tqdm(gallery.write(folder), "drawing", gallery.number_of_files(), unit="file"):
        pass


def _check_output(output: Path, images: Path, force: bool) -> None:
    """Check that the folder is empty or has concepts to replace, and neither contains nor is in the images'
    folder."""
    check_output(output)
    if output.is_dir() and any(output.iterdir()):
        if not (output / NUMBERS).is_file():
            raise ValueError(f"{output} has other files than concepts: choose another --output")
        if not force:
            raise ValueError(f"{output} has concepts already: add --force to replace them")
    one, other = output.resolve(), images.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ValueError(f"{output} and {images} contain one another: choose another --output")


def _progress(batches: DataLoader[Batch]) -> Iterator[Batch]:
    total = sum(map(len, batches.batch_sampler))  # type: ignore[arg-type]
    with tqdm(total=total, desc="images", unit="image", disable=rank() > 0) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.numbers) + len(batch.unreadable))


def _print(concepts: Concepts, crop: CenterCrop, watch: Stopwatch) -> None:
    rows = [("PROTOTYPE", "SEGMENTS", "PIXELS", "MOST SIMILAR")]
    used, unused = concepts.most_used(), concepts.unused()
    for k in used[:_SHOWN]:
        best = concepts.nearest(k)[0].similarity
        share = concepts.pixels[k] / (concepts.images * crop.side**2)
        rows.append((str(k), str(concepts.segments[k]), f"{share:.1%}", f"{best:.3f}"))
    print_table(rows)
    if len(used) > _SHOWN:
        print(f"and {len(used) - _SHOWN} more")
    print(f"\n{len(used)} of {len(used) + len(unused)} prototypes are used in {concepts.images} images", end="")
    print(f"; unused: {ranges(unused)}" if unused else "")
    if concepts.unreadable:
        print(f"skipped, since they cannot be read: {len(concepts.unreadable)}")
    ratio = 1 + watch.seconds["segments"] / (watch.seconds["decoding"] + watch.seconds["network"])
    print(f"{watch.summary()}; decoding, network and segments: {ratio:.2f} x decoding and network alone")

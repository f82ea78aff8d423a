"""The command ``slotcon-hub segment``."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from slotcon_hub.cli.help import Help
from slotcon_hub.cli.options import PRECISIONS, add_model_options, check_output, number, report_unreadable, stems
from slotcon_hub.cli.table import print_table, shorten
from slotcon_hub.concepts.drawing import colors, draw_index, draw_map
from slotcon_hub.concepts.inference import load_prototypes, segment_image
from slotcon_hub.concepts.segments import Segment
from slotcon_hub.concepts.stopwatch import Stopwatch
from slotcon_hub.images import decode, pixel_limit, printable
from slotcon_hub.models.sizes import find_sizes

__all__ = ["add_commands", "write_segments"]

_SEGMENT = """\
Segment whole images: every pixel belongs to the prototype that is most similar to it.

The folder OUTPUT gets for each image
  NAME-overlay.png     the image with the colours and numbers of its segments
  NAME-index.png       prototype index of each pixel: a palette image, or 16-bit grey for more than 256 prototypes
  NAME-segments.json   for each segment: prototype, pixels, share of the image, box (x0, y0, x1, y1; x1, y1
                       exclusive), and mean similarity of its pixels with the prototype"""
_SIZE = """short side to which larger images are shrunk for the network; near the training size, segments
are fewer and larger (default: no resizing)"""
_EXAMPLE = "example: slotcon-hub segment --model slotcon_r50_proto.coco_800ep street.jpg"


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers of argparse."""
    parser = commands.add_parser(
        "segment",
        help="segment images, each segment with its prototype",
        description=_SEGMENT,
        epilog=_EXAMPLE,
        formatter_class=Help,
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="JPEG, PNG or WebP file")
    add_model_options(parser, output="segments")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--size", type=number(1), help=_SIZE)
    parser.set_defaults(command=_segment)


def _segment(options: argparse.Namespace) -> None:
    check_output(options.output)
    pixel_limit()
    names = stems(options.images)
    there = [path for name in names for path in _targets(options.output, name) if path.exists()]
    if there and not options.force:
        raise ValueError(f"{there[0]} exists already: add --force to overwrite it, or choose another --output")
    model = load_prototypes(options.model).to(options.device)
    sizes = find_sizes(model)
    if sizes.only and options.size:
        raise ValueError(f"{options.model} takes images {sizes}: leave out --size {options.size}")
    options.output.mkdir(parents=True, exist_ok=True)
    watch, unreadable = Stopwatch(options.device), []
    rows = [("IMAGE", "SIZE", "SEGMENTS", "LARGEST")]
    for path, name in tqdm(list(zip(options.images, names, strict=True)), "segments", unit="image"):
        try:
            with watch.measure("decoding"):
                image = decode(path.read_bytes())
        except OSError as error:
            unreadable.append((printable(path), str(error)))
            continue
        precision = PRECISIONS[options.precision]
        groups, segments = segment_image(model, image, size=options.size, precision=precision, watch=watch)
        facts = {
            "model": options.model,
            "image": printable(path),
            "size": options.size,
            **({"resized_to": sizes.only} if sizes.only else {}),
            "precision": options.precision,
            "device": options.device.type,
        }
        with watch.measure("drawing"):
            write_segments(options.output, name, image, groups, segments, model.num_classes, facts)
        height, width = groups.shape
        largest = f"prototype {segments[0].prototype}, {segments[0].pixels / groups.numel():.0%}"
        rows.append((shorten(printable(path)), f"{width} x {height}", str(len(segments)), largest))
    report_unreadable(unreadable, len(names))
    print_table(rows)
    ratio = 1 + watch.seconds["segments"] / watch.seconds["network"]
    print(f"\n{watch.summary()}; network and segments: {ratio:.2f} x the network alone")
    if sizes.only:
        print(f"{options.model} takes images {sizes}: all are resized to that")
    print(f"overlays, indices and numbers are in {options.output}")


def _targets(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}-{end}" for end in ("overlay.png", "index.png", "segments.json")]


def write_segments(
    folder: Path,
    name: str,
    image: Tensor,
    groups: Tensor,
    segments: list[Segment],
    prototypes: int,
    facts: dict[str, Any],
) -> None:
    """Write the files of an image atomically, the JSON file last."""
    height, width = groups.shape
    told = [
        {
            "prototype": segment.prototype,
            "pixels": segment.pixels,
            "share": round(segment.pixels / groups.numel(), 6),
            "box": segment.box,
            "similarity": round(segment.similarity, 6),
        }
        for segment in segments
    ]
    numbers = {**facts, "width": width, "height": height, "prototypes": prototypes, "segments": told}
    palette = colors(prototypes)
    with tempfile.TemporaryDirectory(prefix=".segment-", dir=folder) as scratch:
        overlay, index, listed = _targets(Path(scratch), name)
        draw_map(image.permute(1, 2, 0).numpy(), groups.numpy(), segments, palette).save(overlay)
        draw_index(groups.numpy(), palette).save(index)
        listed.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        for path in (overlay, index, listed):
            path.replace(folder / path.name)

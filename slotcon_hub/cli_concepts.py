"""The commands ``slotcon-hub concepts`` and ``slotcon-hub segment``."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from slotcon_hub.concepts import Batch, Concepts, crops, discover
from slotcon_hub.drawing import colors, draw_index, draw_map
from slotcon_hub.export import replacing
from slotcon_hub.gallery import INDEX, NUMBERS, Gallery
from slotcon_hub.inference import CenterCrop, load_prototypes, segment_picture
from slotcon_hub.pictures import ImageFiles, decode
from slotcon_hub.segments import Region
from slotcon_hub.stopwatch import Stopwatch
from slotcon_hub.table import print_table

__all__ = ["add_commands"]

_CONCEPTS = """\
Show what each prototype stands for: of all segments that belong to it, those most similar to it.

Every picture is resized and cropped as the model was evaluated (for 224 pixels: short side 256, central 224 x 224).
Every pixel belongs to the prototype that is most similar to it; a segment is all pixels of a picture that belong to
one prototype. Its feature, the average projection of its pixels, is compared with the prototype by cosine.

The folder OUTPUT gets pages of pictures with the segments in red, index.html to look through them, and
concepts.json with all numbers."""
_SEGMENT = """\
Divide whole pictures into segments, one for each prototype that is most similar to some of the pixels.

The folder OUTPUT gets for each picture
  NAME-overlay.png     the picture under the colours and numbers of its segments
  NAME-index.png       each pixel's prototype: the entry of its palette, or 16 bits of grey above 256 prototypes
  NAME-segments.json   of each segment prototype, pixels, share, box (x0, y0, x1, y1) and mean similarity"""
_MODEL = """\
a prototype model by name, such as slotcon_r50_proto.coco_800ep, or the folder of a run or of its export"""
_WHOLE = "group: as said above; image: every picture is one segment, as the paper does for ImageNet (group)"
_SHOWN = 5  # prototypes in the printed table
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_commands(commands: Any) -> None:
    """Add both to the subparsers of argparse."""
    raw = argparse.RawDescriptionHelpFormatter
    find = commands.add_parser(
        "concepts", help="show what prototypes stand for", description=_CONCEPTS, formatter_class=raw
    )
    _common(find, output="concepts")
    find.add_argument("--images", type=Path, required=True, help="folder of pictures, at any depth")
    find.add_argument("--segment", choices=["group", "image"], default="group", help=_WHOLE)
    find.add_argument("--top", type=_positive, default=10, help="segments shown of each prototype (10)")
    find.add_argument("--per-page", type=_positive, default=10, help="prototypes of a page (10)")
    find.add_argument("--batch-size", type=_positive, default=32, help="pictures at a time (32)")
    find.add_argument("--workers", type=_natural, default=0, help="processes that decode (0: this one does it)")
    find.add_argument("--force", action="store_true", help="replace the concepts that OUTPUT holds")
    find.set_defaults(command=_concepts)
    divide = commands.add_parser(
        "segment", help="divide pictures into segments", description=_SEGMENT, formatter_class=raw
    )
    _common(divide, output="segments")
    divide.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    divide.add_argument("--size", type=_positive, help="shrink larger pictures to this short side for the network")
    divide.add_argument("--force", action="store_true", help="overwrite files of these names")
    divide.set_defaults(command=_segment)


def _common(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--model", required=True, help=_MODEL)
    parser.add_argument("--output", type=Path, default=Path(output), help=f"folder ({output})")
    parser.add_argument("--device", type=_device, default="auto", help="cpu or cuda (cuda where there is one)")
    parser.add_argument("--precision", choices=_PRECISIONS, default="float32", help="of the network (float32)")


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return int(text)


def _natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError("it must not be negative")
    return int(text)


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


def _concepts(options: argparse.Namespace) -> None:
    _check_output(options.output, options.images, options.force)
    files = ImageFiles(options.images)
    model = load_prototypes(options.model).to(options.device)
    crop, watch = CenterCrop.of(model), Stopwatch(options.device)
    with replacing(options.output) as folder:
        folder.mkdir()
        concepts = discover(
            model,
            _progress(crops(files, crop, batch_size=options.batch_size, workers=options.workers), len(files)),
            top=options.top,
            whole=options.segment == "image",
            precision=_PRECISIONS[options.precision],
            watch=watch,
        )
        _report_unreadable([(files.name(number), reason) for number, reason in concepts.unreadable], len(files))
        facts = {
            **_facts(options),
            "segment": options.segment,
            "top": options.top,
            "resize": crop.resize,
            "crop": crop.side,
            "interpolation": crop.interpolation,
        }
        gallery = Gallery(concepts, files, options.images, crop, facts, options.per_page)
        with watch.measure("drawing"):
            for _ in tqdm(gallery.write(folder), "drawing", gallery.number_of_files(), unit="file"):
                pass
    _print_concepts(concepts, crop, watch.seconds)
    print(f"{options.output / INDEX} shows them")


def _check_output(output: Path, images: Path, force: bool) -> None:
    """Refuse a folder that holds something else, or the pictures."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: choose another --output")
    if output.is_dir() and any(output.iterdir()):
        if not (output / NUMBERS).is_file():
            raise ValueError(f"{output} holds something else than concepts: choose another --output")
        if not force:
            raise ValueError(f"{output} holds concepts already: add --force to replace them")
    one, other = output.resolve(), images.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ValueError(f"{output} and {images} are one in the other: choose another --output")


def _progress(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
    with tqdm(total=total, desc="pictures", unit="picture") as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.numbers) + len(batch.unreadable))


def _report_unreadable(unreadable: list[tuple[str, str]], total: int) -> None:
    for name, reason in unreadable:
        print(f"skipped, since it cannot be read: {name} ({reason})", file=sys.stderr)
    if len(unreadable) == total:
        raise ValueError(f"none of the {total} pictures can be read: name others")


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    return {"model": options.model, "precision": options.precision, "device": options.device.type}


def _print_concepts(concepts: Concepts, crop: CenterCrop, seconds: dict[str, float]) -> None:
    rows = [("PROTOTYPE", "SEGMENTS", "PIXELS", "MOST SIMILAR")]
    used, unused = concepts.by_use(), concepts.unused()
    for k in used[:_SHOWN]:
        share = concepts.pixels[k] / (concepts.pictures * crop.side**2)
        rows.append((str(k), str(concepts.segments[k]), f"{share:.1%}", f"{concepts.nearest(k)[0].similarity:.3f}"))
    print_table(rows)
    if len(used) > _SHOWN:
        print(f"and {len(used) - _SHOWN} more")
    print(f"\n{len(used)} of {len(used) + len(unused)} prototypes are used by {concepts.pictures} pictures", end="")
    print(f"; unused: {', '.join(map(str, unused))}" if unused else "")
    ratio = 1 + seconds["segments"] / (seconds["decoding"] + seconds["network"])
    print(f"{_told(seconds)}; the segments make decoding and network {ratio:.2f} x as long")


def _told(seconds: dict[str, float]) -> str:
    return ", ".join(f"{what} {value:.2f} s" for what, value in seconds.items())


def _segment(options: argparse.Namespace) -> None:
    names = _names(options.images)
    options.output.mkdir(parents=True, exist_ok=True)
    there = [path for name in names for path in _targets(options.output, name) if path.exists()]
    if there and not options.force:
        raise ValueError(f"{there[0]} is there already: add --force to overwrite it, or choose another --output")
    model = load_prototypes(options.model).to(options.device)
    watch, unreadable = Stopwatch(options.device), []
    rows = [("PICTURE", "SIZE", "SEGMENTS", "LARGEST")]
    for path, name in tqdm(list(zip(options.images, names, strict=True)), "segments", unit="picture"):
        try:
            with watch.measure("decoding"):
                picture = decode(path.read_bytes(), upright=True)
        except OSError as error:
            unreadable.append((str(path), str(error)))
            continue
        precision = _PRECISIONS[options.precision]
        groups, regions = segment_picture(model, picture, watch, size=options.size, precision=precision)
        with watch.measure("files"):
            facts = {**_facts(options), "size": options.size, "picture": str(path)}
            _write(options.output, name, picture, groups, regions, model.num_classes, facts)
        height, width = groups.shape
        largest = f"{regions[0].prototype} ({regions[0].pixels / groups.numel():.0%})"
        rows.append((str(path), f"{width} x {height}", str(len(regions)), largest))
    _report_unreadable(unreadable, len(names))
    print_table(rows)
    ratio = 1 + watch.seconds["segments"] / watch.seconds["network"]
    print(f"\n{_told(watch.seconds)}; the segments make the network {ratio:.2f} x as long")
    print(f"{options.output} holds overlays, indices and numbers")


def _names(images: list[Path]) -> list[str]:
    """The stems of the pictures; of equal ones the later get a number."""
    taken: set[str] = set()
    names = []
    for path in images:
        name = next(
            name
            for name in (path.stem, *(f"{path.stem}-{i}" for i in range(2, len(images) + 2)))
            if name.casefold() not in taken
        )
        taken.add(name.casefold())
        names.append(name)
    return names


def _targets(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}-{end}" for end in ("overlay.png", "index.png", "segments.json")]


def _write(
    folder: Path,
    name: str,
    picture: Tensor,
    groups: Tensor,
    regions: list[Region],
    prototypes: int,
    facts: dict[str, Any],
) -> None:
    """Write the files of a picture; each is there as a whole, the numbers last."""
    pixels, palette = picture.permute(1, 2, 0).numpy(), colors(prototypes)
    height, width = groups.shape
    segments = [
        {
            "prototype": region.prototype,
            "pixels": region.pixels,
            "share": round(region.pixels / groups.numel(), 6),
            "box": region.box,
            "similarity": round(region.similarity, 6),
        }
        for region in regions
    ]
    numbers = {**facts, "width": width, "height": height, "prototypes": prototypes, "segments": segments}
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as scratch:
        overlay, index, told = _targets(Path(scratch), name)
        draw_map(pixels, groups.numpy(), regions, palette).save(overlay)
        draw_index(groups.numpy(), palette).save(index)
        told.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        for path in (overlay, index, told):
            path.replace(folder / path.name)

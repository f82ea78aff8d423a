"""The command ``slotcon-hub pca``."""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from slotcon_hub.cli.help import Help
from slotcon_hub.cli.options import PRECISIONS, add_model_options, check_output, number, report_unreadable, stems
from slotcon_hub.concepts import components
from slotcon_hub.concepts.components import Components, fit_components, fit_foreground
from slotcon_hub.concepts.drawing import colors, draw_map
from slotcon_hub.concepts.inference import load_prototypes, segment_image
from slotcon_hub.files import atomic_write
from slotcon_hub.images import decode, pixel_limit, printable
from slotcon_hub.models.maps import MapModel, load_map
from slotcon_hub.templates import render_template

__all__ = ["add_commands"]

_PCA = """\
Show the dense features of images as colours: their first three principal components as red, green and blue. The
components are those of all images together, so that a colour means the same in each, or with --each those of each.

The folder OUTPUT gets for each image
  NAME-image.png   the image
  NAME-pca.png     the components, resized bilinearly to its pixels
  NAME-groups.png  with --groups, the segments of a prototype model
and index.html, which shows them side by side, and pca.json with what was done. The maps of all images are kept in
memory, some MB for each."""
_FOREGROUND = """show the foreground alone, the cells where the first component is at least T of its range, such as
0.5; the colours are the components of these cells. Of the two sides of the component, the foreground is the one of
which the middles of images have more"""
_EXAMPLES = """\
examples:
  slotcon-hub pca --model slotcon_nano --size 448 street.jpg
  slotcon-hub pca --model resnet50 --groups slotcon_nano_proto --foreground 0.5 a.jpg b.jpg c.jpg"""
_TIMM = "timm model by name, or the folder of a run or of its export"
_NUMBERS, _INDEX = "pca.json", "index.html"


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers of argparse."""
    parser = commands.add_parser(
        "pca",
        help="show the dense features of images as colours",
        description=_PCA,
        epilog=_EXAMPLES,
        formatter_class=Help,
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="JPEG, PNG or WebP file")
    add_model_options(parser, output="pca", model=_TIMM)
    parser.add_argument("--force", action="store_true", help="replace what this command left in OUTPUT")
    parser.add_argument("--size", type=number(1), default=448, help="short side of images for the network (448)")
    parser.add_argument("--each", action="store_true", help="components of each image alone")
    parser.add_argument("--foreground", type=_share, metavar="T", help=_FOREGROUND)
    parser.add_argument("--groups", metavar="MODEL", help="prototype model whose segments are shown, too")
    parser.set_defaults(command=_pca)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number between 0 and 1")
    return value


def _pca(options: argparse.Namespace) -> None:
    _check_output(options.output, options.force)
    pixel_limit()
    model = load_map(options.model, options.size).to(options.device)
    groups = load_prototypes(options.groups).to(options.device) if options.groups else None
    maps: list[Tensor] = []
    read, unreadable = [], []
    for path, name in tqdm(list(zip(options.images, stems(options.images), strict=True)), "features", unit="image"):
        try:
            image = decode(path.read_bytes())
        except OSError as error:
            unreadable.append((printable(path), str(error)))
            continue
        maps.append(_map(model, image, options))
        read.append((path, name))
    report_unreadable(unreadable, len(options.images))
    found = [one for some in ([[one] for one in maps] if options.each else [maps]) for one in _fit(some, options)]
    with atomic_write(options.output) as folder:
        folder.mkdir()
        for (path, name), features, (every, shown) in zip(
            tqdm(read, "drawing", unit="image"), maps, found, strict=True
        ):
            image = decode(path.read_bytes())
            size = image.shape[1], image.shape[2]
            _save(image, folder / f"{name}-image.png")
            pixels = shown.project(features, size)
            if options.foreground is not None:
                pixels = pixels.where(every.project(features, size)[0] >= options.foreground, 0)
            _save((pixels * 255).round().byte(), folder / f"{name}-pca.png")
            if groups is not None:
                numbers, segments = segment_image(groups, image, size=options.size)
                drawn = draw_map(
                    image.permute(1, 2, 0).numpy(), numbers.numpy(), segments, colors(groups.num_classes)
                )
                drawn.save(folder / f"{name}-groups.png")
        _write(folder, options, read, found)
    print(f"open {options.output / _INDEX} to see them")


def _check_output(output: Path, force: bool) -> None:
    check_output(output)
    if output.is_dir() and any(output.iterdir()):
        if not (output / _NUMBERS).is_file():
            raise ValueError(
                f"{output} contains something other than principal components: choose another --output"
            )
        if not force:
            raise ValueError(f"{output} exists already: add --force to replace it, or choose another --output")


@torch.inference_mode()
def _map(model: MapModel, image: Tensor, options: argparse.Namespace) -> Tensor:
    """The map of an image, resized to the short side that is asked for: C x h x w on the CPU."""
    precision = PRECISIONS[options.precision]
    image = resize(image, [options.size], InterpolationMode.BILINEAR, antialias=True)
    with torch.autocast(options.device.type, precision, enabled=precision != torch.float32):
        return model(image[None])[0].cpu()


def _fit(maps: list[Tensor], options: argparse.Namespace) -> Iterator[tuple[Components, Components]]:
    """For each of some maps: the components of all cells, which decide the foreground, and those that are shown."""
    if options.foreground is None:
        every = shown = fit_components(maps)
    else:
        every, shown = fit_foreground(maps, options.foreground)
    return ((every, shown) for _ in maps)


def _save(image: Tensor, path: Path) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def _write(
    folder: Path,
    options: argparse.Namespace,
    read: list[tuple[Path, str]],
    found: list[tuple[Components, Components]],
) -> None:
    """The numbers, and the page."""
    facts = {
        "model": options.model,
        "short side": options.size,
        "components of": "each image" if options.each else f"{len(read)} images together",
        **({"foreground from": options.foreground} if options.foreground is not None else {}),
        **({"groups of": options.groups} if options.groups else {}),
        "precision": options.precision,
        "device": options.device.type,
    }
    images = [
        {"image": printable(path), "name": name, "explained": [round(share, 6) for share in shown.explained]}
        for (path, name), (_, shown) in zip(read, found, strict=True)
    ]
    (folder / _NUMBERS).write_text(json.dumps({**facts, "images": images}, indent=1) + "\n", encoding="utf-8")
    kinds = {"image": "image", "pca": "principal components"} | ({"groups": "groups"} if options.groups else {})
    rows = [
        # "./", since a name with a colon would be read as a scheme
        {"name": printable(path), "files": ["./" + quote(os.fsencode(f"{name}-{kind}.png")) for kind in kinds]}
        for path, name in read
    ]
    template = Path(components.__file__).with_suffix(".html")
    title = f"Principal components of {options.model}"
    page = render_template(template, title=title, facts=facts, columns=list(kinds.values()), rows=rows)
    (folder / _INDEX).write_text(page, encoding="utf-8")

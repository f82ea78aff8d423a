"""The gallery of concepts: pages of images, an HTML index, and a JSON file of all numbers."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from slotcon_hub.concepts.discover import Concepts
from slotcon_hub.concepts.drawing import draw_page, draw_segment
from slotcon_hub.concepts.inference import CenterCrop
from slotcon_hub.images import ImageFiles, decode, printable
from slotcon_hub.templates import render_template

__all__ = ["INDEX", "NUMBERS", "Gallery", "page_name", "ranges"]

INDEX, NUMBERS = "index.html", "concepts.json"


@dataclass(frozen=True)
class Gallery:
    """Concepts with their images."""

    concepts: Concepts
    files: ImageFiles
    root: Path
    """Folder of the images; file names are relative to it."""
    crop: CenterCrop
    facts: dict[str, Any]
    """Facts of the model and how it was applied, for index and JSON."""
    per_page: int
    """Prototypes per page."""

    def number_of_files(self) -> int:
        """Number of files that :meth:`write` writes."""
        return len(self._pages()) + 2

    def write(self, folder: Path) -> Iterator[Path]:
        """Write pages, JSON and index into a folder, and yield each file after it is written; the index is last."""
        for number, prototypes in enumerate(self._pages()):
            columns = max(len(self.concepts.nearest(k)) for k in prototypes)
            rows = [(str(k), self._use(k), self._images(k)) for k in prototypes]
            path = folder / page_name(number)
            draw_page(rows, columns).save(path)
            yield path
        numbers, index = folder / NUMBERS, folder / INDEX
        numbers.write_text(json.dumps(self._numbers(), indent=1) + "\n", encoding="utf-8")
        yield numbers
        index.write_text(self._index(), encoding="utf-8")
        yield index

    def _pages(self) -> list[list[int]]:
        order = self.concepts.most_used()
        return [order[i : i + self.per_page] for i in range(0, len(order), self.per_page)]

    def _name(self, image: int) -> str:
        return printable(Path(os.path.relpath(self.files.paths[image], self.root)).as_posix())

    def _share(self, prototype: int) -> float:
        """Fraction of the pixels of all crops."""
        return self.concepts.pixels[prototype] / (self.concepts.images * self.crop.side**2)

    def _use(self, prototype: int) -> str:
        use = self._count(prototype)
        return use if self.concepts.whole else f"{use}\n{self._share(prototype):.1%} of pixels"

    def _count(self, prototype: int) -> str:
        number, what = self.concepts.segments[prototype], "image" if self.concepts.whole else "segment"
        return f"{number} {what}{'s' * (number != 1)}"

    def _images(self, prototype: int) -> list[Image.Image]:
        marked = []
        for segment in self.concepts.nearest(prototype):
            crop = self.crop(decode(self.files.read(segment.image))).permute(1, 2, 0).numpy()
            marked.append(draw_segment(crop, segment.pixel_mask(self.crop.side) if segment.mask else None))
        return marked

    def _numbers(self) -> dict[str, Any]:
        concepts = self.concepts
        rows = [
            {
                "prototype": k,
                "segments": concepts.segments[k],
                "share": round(self._share(k), 6),
                "nearest": [
                    {
                        "file": self._name(segment.image),
                        "similarity": segment.similarity,
                        "pixels": segment.pixels,
                        "box": segment.box(self.crop.side),
                    }
                    for segment in concepts.nearest(k)
                ],
            }
            for k in range(len(concepts.segments))
        ]
        unreadable = [self._name(image) for image, _ in concepts.unreadable]
        counts = {"prototypes": len(rows), "images": concepts.images, "unreadable": unreadable}
        counts["per_page"] = self.per_page
        return {**self.facts, **counts, "unused": concepts.unused(), "concepts": rows}

    def _index(self) -> str:
        concepts = self.concepts
        pages = [{"file": page_name(n), "prototypes": prototypes} for n, prototypes in enumerate(self._pages())]
        return render_template(
            Path(__file__).with_suffix(".html"),
            title=f"Concepts of {self.facts['model']}",
            images=concepts.images,
            unreadable=len(concepts.unreadable),
            facts=self.facts,
            numbers=NUMBERS,
            order=concepts.most_used(),
            unused=concepts.unused(),
            per_page=self.per_page,
            pages=pages,
            count=self._count,
            nearest=concepts.nearest,
            image=self._name,
            ranges=ranges,
        )


def ranges(numbers: Iterable[int]) -> str:
    """Format ascending numbers as ranges: 0, 1, 2, 5 and 7 as 0-2, 5, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def page_name(number: int) -> str:
    """Name of a page's file."""
    return f"page-{number:03}.png"

"""What was found of each prototype, to be looked at: pages of images, an index of them, and the numbers."""

import html
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from slotcon_hub.concepts.discover import Concepts
from slotcon_hub.concepts.drawing import draw_page, mark
from slotcon_hub.concepts.inference import CenterCrop
from slotcon_hub.images import ImageFiles, decode

__all__ = ["INDEX", "NUMBERS", "Gallery", "ranges"]

INDEX, NUMBERS = "index.html", "concepts.json"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem } .facts, summary { color: #666 }
img { max-width: 100%; height: auto; display: block } a { color: #b00; text-decoration: none }
.use { columns: 16rem; padding: 0; list-style: none } .use b { display: inline-block; min-width: 3rem }
td, th { text-align: left; padding: 0 1.5rem 0 0; font-variant-numeric: tabular-nums; font-weight: normal }
"""


@dataclass(frozen=True)
class Gallery:
    """Concepts, and the images that they were found in."""

    concepts: Concepts
    files: ImageFiles
    root: Path
    """The folder of the images; their names are relative to it."""
    crop: CenterCrop
    facts: dict[str, Any]
    """Of the model and how it was applied."""
    per_page: int
    """Prototypes of a page."""

    def number_of_files(self) -> int:
        """That :meth:`write` writes."""
        return len(self._pages()) + 2

    def write(self, folder: Path) -> Iterator[Path]:
        """Write pages, numbers and index into a folder, and yield each file when it is there; the index is last."""
        for number, prototypes in enumerate(self._pages()):
            columns = max(len(self.concepts.nearest(k)) for k in prototypes)
            rows = [(str(k), self._use(k), self._images(k)) for k in prototypes]
            path = folder / _page_name(number)
            draw_page(rows, columns).save(path)
            yield path
        numbers, index = folder / NUMBERS, folder / INDEX
        numbers.write_text(json.dumps(self._numbers(), indent=1) + "\n", encoding="utf-8")
        yield numbers
        index.write_text(self._index(), encoding="utf-8")
        yield index

    def _pages(self) -> list[list[int]]:
        order = self.concepts.by_use()
        return [order[i : i + self.per_page] for i in range(0, len(order), self.per_page)]

    def _name(self, image: int) -> str:
        return Path(os.path.relpath(self.files.name(image), self.root)).as_posix()

    def _share(self, prototype: int) -> float:
        """Of the pixels of all crops."""
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
            crop = self.crop(decode(self.files.read(segment.image), upright=True)).permute(1, 2, 0).numpy()
            marked.append(mark(crop, segment.pixel_mask(self.crop.side) if segment.mask else None))
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
        return {**self.facts, **counts, "unused": concepts.unused(), "concepts": rows}

    def _index(self) -> str:
        concepts, order, unused = self.concepts, self.concepts.by_use(), self.concepts.unused()
        use = "".join(
            f'<li><a href="#page-{place // self.per_page}"><b>{k}</b></a> {self._count(k)}</li>\n'
            for place, k in enumerate(order)
        )
        none = f"<p>Unused, {len(unused)} of them: {ranges(unused)}.</p>\n" if unused else ""
        facts = "; ".join(f"{key} {value}" for key, value in self.facts.items())
        skipped = f", {len(concepts.unreadable)} more could not be read" if concepts.unreadable else ""
        title = html.escape(f"Concepts of {self.facts['model']}")
        pages = "".join(self._section(number, prototypes) for number, prototypes in enumerate(self._pages()))
        return (
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
            f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n"
            f'<p class="facts">{concepts.images} images{skipped}; {html.escape(facts)}. All numbers are in '
            f'<a href="{NUMBERS}">{NUMBERS}</a>.</p>\n'
            f"<p>{len(order)} of {len(order) + len(unused)} prototypes are used, the most frequent first:</p>\n"
            f'<ul class="use">\n{use}</ul>\n{none}{pages}</html>\n'
        )

    def _section(self, number: int, prototypes: list[int]) -> str:
        lines = "".join(
            f"<tr><td>{k}</td><td>{segment.similarity:.3f}</td><td>{html.escape(self._name(segment.image))}</td></tr>\n"
            for k in prototypes
            for segment in self.concepts.nearest(k)
        )
        named = ", ".join(map(str, prototypes))
        return (
            f'<h2 id="page-{number}">Prototypes {named}</h2>\n'
            f'<img src="{_page_name(number)}" alt="segments of prototypes {named}" loading="lazy">\n'
            f"<details><summary>images</summary>\n<table>\n<tr><th>prototype</th><th>similarity</th><th>image</th></tr>"
            f"\n{lines}</table>\n</details>\n"
        )


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers for people: 0, 1, 2, 5 and 7 as 0-2, 5, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _page_name(number: int) -> str:
    return f"page-{number:03}.png"

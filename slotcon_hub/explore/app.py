"""The page itself, by gradio: drop an image, see its groups, click one; several models beside one another.

gradio is only imported when the page is built: it comes with the extra ``explore``.
"""

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from slotcon_hub.concepts.drawing import colors
from slotcon_hub.concepts.inference import CenterCrop, load_prototypes
from slotcon_hub.explore.analysis import SIZES, Analysis, analyze, decode_for_display
from slotcon_hub.explore.collection import EXAMPLES, Collection, find_or_make
from slotcon_hub.images import ImageFiles
from slotcon_hub.models.prototype_model import SlotConPrototypes
from slotcon_hub.models.sizes import find_sizes
from slotcon_hub.templates import render_template

__all__ = ["Explored", "build_page", "details_of", "launch", "load_models", "views_of"]

_HERE = Path(__file__).parent
_LARGEST = "100mb"  # file that a visitor may upload
_KEPT = 3600  # seconds for which gradio's files of images are kept
_HELP = "Drop an image, or choose a drawn scene. **Click a group** to see what its prototype stands for."


@dataclass(frozen=True)
class Explored:
    """A model on the page."""

    name: str
    model: SlotConPrototypes
    collection: Collection
    precision: torch.dtype


def load_models(
    names: Sequence[str],
    images: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> list[Explored]:
    """Load prototype models, and find or make their concepts.

    Args:
        names: as for :func:`slotcon_hub.concepts.inference.load_prototypes`.
        images: as for :func:`slotcon_hub.explore.collection.find_or_make`; by default the package's drawn scenes.
        device: of the models.
        precision: of the networks, float32 or bfloat16.

    Raises:
        ValueError, RuntimeError, OSError: as those two.
        ImportError: gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('the page needs gradio: pip install "path/to/slotcon_hub[explore]"')
    found = []
    for name in names:
        model = load_prototypes(name).to(device)
        find_sizes(model)  # before visitors come at once
        collection = find_or_make(model, name, images or EXAMPLES, precision)
        found.append(Explored(name, model, collection, precision))
    return found


def launch(
    models: Sequence[Explored], *, examples: Path = EXAMPLES, host: str | None = None, port: int | None = None
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        models: of :func:`load_models`.
        examples: folder of images to choose from.
        host: address to listen on; None for gradio's: ``$GRADIO_SERVER_NAME``, which Spaces set, or loopback.
        port: None for the first free one from 7860 on.

    Raises:
        OSError: the port is taken.
    """
    page = build_page(models, examples)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        show_error=True,
        footer_links=[],
        max_file_size=_LARGEST,
        css_paths=_HERE / "page.css",
        prevent_thread_lock=True,
        ssr_mode=False,
    )
    with contextlib.suppress(KeyboardInterrupt):
        print(f"open {page.local_url}", flush=True)
        page.block_thread()


def build_page(models: Sequence[Explored], examples: Path = EXAMPLES) -> Any:
    """Build the page: a ``gradio.Blocks``."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves the machine
    import gradio as gr

    scenes = [Path(path) for path in ImageFiles(examples).paths]
    fixed = all(find_sizes(one.model).only for one in models)
    with gr.Blocks(title="Semantic groups", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as page:
        image, seen = gr.State(), gr.State()
        gr.Markdown(f"# Semantic groups of an image\n{_HELP}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                file = gr.File(label="Image", type="binary", file_types=["image"], height=140, elem_id="file")
                size = gr.Slider(
                    *SIZES,
                    value=max(min(CenterCrop.from_model(models[0].model).side, SIZES[1]), SIZES[0]),
                    step=32,
                    label="Short side for the network, in pixels",
                    visible=not fixed,
                    elem_id="size",
                )
            gallery = gr.Gallery(
                [_opened(path) for path in scenes],
                label="Drawn scenes",
                height=250,
                allow_preview=False,
                interactive=False,
                buttons=[],
                scale=2,
                min_width=280,
                elem_id="scenes",
            )
        status = gr.Markdown(elem_id="status")
        panels = []
        with gr.Row():
            for one in models:
                with gr.Column(min_width=300):
                    panels.append(_build_panel(gr, one))
        views = [panel[key] for panel in panels for key in ("overlay", "components", "table")]
        details = [panel[key] for panel in panels for key in ("similarity", "concept")]

        def show(tensor: Tensor | None, side: float) -> list[Any]:
            """Values of the outputs below: views of an image, or of none."""
            if tensor is None:
                return [gr.skip()] * (1 + len(views) + len(details))
            analyses = [analyze(one.model, tensor, int(side), one.precision) for one in models]
            return [
                analyses,
                *(v for a in analyses for v in views_of(a)),
                *[gr.Image(None, visible=False), ""] * len(models),
            ]

        def receive(data: bytes | None, side: float) -> list[Any]:
            try:
                tensor = decode_for_display(data or b"")
                return [None, "", tensor, *show(tensor, side)]
            except (OSError, ValueError, RuntimeError, MemoryError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                said = f"**This file cannot be shown: {reason}.**"
                return [None, said, *[gr.skip()] * (2 + len(views) + len(details))]

        def choose(side: float, event: gr.SelectData) -> list[Any]:
            return receive(scenes[event.index].read_bytes(), side)

        def click(analyses: list[Analysis] | None, event: gr.SelectData) -> list[Any]:
            if analyses is None:
                return [gr.skip()] * len(details)
            x, y = event.index
            pairs = [details_of(one, a, int(x), int(y)) for one, a in zip(models, analyses, strict=True)]
            return [v for drawn, about in pairs for v in (gr.Image(drawn, visible=True), about)]

        shown = [seen, *views, *details]
        private: Any = {"api_visibility": "private", "show_progress": "minimal"}
        file.upload(receive, [file, size], [file, status, image, *shown], **private)
        gallery.select(choose, [size], [file, status, image, *shown], **private)
        size.release(show, [image, size], shown, **private)
        for panel in panels:
            panel["overlay"].select(click, [seen], details, **private)
    return page


def _build_panel(gr: Any, one: Explored) -> dict[str, Any]:
    def image(label: str, name: str, **options: Any) -> Any:
        with gr.Column(min_width=260):
            shown: Any = {"interactive": False, "format": "jpeg", "buttons": ["fullscreen"], **options}
            return gr.Image(label=label, elem_classes=name, **shown)

    panel = {}
    gr.Markdown(f"### {one.name.removeprefix('hf-hub:')}")
    with gr.Row():
        panel["overlay"] = image("Groups: click one", "overlay")
        panel["components"] = image("Principal components of the features", "components")
    with gr.Row():
        panel["similarity"] = image("Similarity with the prototype", "similarity", visible=False)
        with gr.Column(min_width=260):
            panel["concept"] = gr.HTML()
    panel["table"] = gr.HTML(elem_classes="table")
    return panel


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def views_of(analysis: Analysis) -> tuple[Image.Image, Image.Image, str]:
    """Groups over the image, principal components, and a table of the groups as HTML."""
    palette = colors(len(analysis.scores)).tolist()
    facts = {"segments": analysis.segments, "pixels": analysis.groups.size, "colors": palette}
    table = render_template(_HERE / "segments.html", **facts)
    return analysis.overlay(), analysis.principal_components(), table


def details_of(one: Explored, analysis: Analysis, x: int, y: int) -> tuple[Image.Image, str]:
    """Similarity map of the prototype at a pixel of the displayed image, and its concept as HTML."""
    height, width = analysis.groups.shape
    prototype = int(analysis.groups[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])
    similarity, least, most = analysis.similarity_map(prototype)
    about = render_template(
        _HERE / "concept.html",
        concept=one.collection.concept(prototype),
        segment=analysis.segment(prototype),
        pixels=analysis.groups.size,
        images=one.collection.images,
        color=colors(prototype + 1)[prototype].tolist(),
        least=least,
        most=most,
    )
    return similarity, about

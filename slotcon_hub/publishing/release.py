"""The published folder of a model: weights that timm loads, with a card and files to verify it."""

import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from slotcon_hub.files import sha256
from slotcon_hub.models.importing import read_models
from slotcon_hub.models.loading import load
from slotcon_hub.models.saving import save_backbone, save_model
from slotcon_hub.publishing import cards, parity
from slotcon_hub.weights import hub, store, table

__all__ = ["CARD", "FILES", "PREVIEW", "RECORDED", "build", "has_prototypes", "snippet"]

CARD, PREVIEW = "README.md", "preview.png"
RECORDED = (store.WEIGHTS, store.CONFIG, parity.FILE, PREVIEW)
"""Files whose SHA-256 is recorded; not the card, which may be edited on the Hub."""
FILES = (*RECORDED, store.RECORD, CARD)
"""All published files; only the preview may be missing."""


def build(
    name: str,
    folder: Path,
    *,
    checkpoint: Path | None = None,
    repo_id: str | None = None,
    preview: Path | None = None,
) -> Path:
    """Build the published folder: weights, configuration, card, reference tensors, and SHA-256.

    A backbone is saved under timm's own architecture, so that it loads in timm without this package and in
    transformers; only ``slotcon_nano`` keeps arguments, which both accept. A prototype model loads once
    ``slotcon_hub`` is imported.

    Args:
        name: ``<architecture>.<tag>``, or an architecture of the table for its default tag.
        checkpoint: as for :func:`slotcon_hub.models.importing.read_models`, such as the folder of a run; by default
            the weights of this name in the local store or in this package.
        folder: new or empty; removed after an error.
        repo_id: for the card; by default that of the name.
        preview: a PNG or JPEG image for the card.

    Raises:
        ValueError: the weights are missing or damaged, or ``repo_id`` or the image is invalid.
        FileExistsError: the folder is not empty.
    """
    name = table.full_name(name)
    repo_id = repo_id or table.repository(name)
    hub.check_repo_id(repo_id)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: choose another folder")
    try:
        _save_model(name, checkpoint, folder)
        config = {"name": name, **json.loads((folder / store.CONFIG).read_text())}
        (folder / store.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        card = cards.render(name, repo_id=repo_id, config=config)
        if preview is not None:
            _save_image(preview, folder / PREVIEW)
            card = _with_preview(card)
        (folder / CARD).write_text(card, encoding="utf-8")
        record = {file: sha256(folder / file) for file in RECORDED if (folder / file).is_file()}
        (folder / store.RECORD).write_text(json.dumps(record, indent=2) + "\n")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def snippet(name: str, place: str | Path, revision: str | None = None) -> str:
    """Code that loads a published model.

    Args:
        name: ``<architecture>.<tag>``.
        place: the repository, or a folder.
        revision: of the repository.
    """
    at, option = (f"@{revision}", f', revision="{revision}"') if revision else ("", "")
    source = f"local-dir:{place}" if isinstance(place, Path) else f"hf-hub:{place}{at}"
    timms = f'import timm\n\nmodel = timm.create_model("{source}", pretrained=True)'
    if has_prototypes(name):
        return f"import slotcon_hub\n{timms}"
    return f"""{timms}

from transformers import AutoModel, TimmBackbone
from transformers.initialization import no_init_weights

auto_model = AutoModel.from_pretrained("{place}"{option})
with no_init_weights():  # otherwise it loses BatchNorm's statistics
    backbone = TimmBackbone.from_pretrained("{source}")"""


def has_prototypes(name: str) -> bool:
    """Whether a name is of a prototype model."""
    return name.partition(".")[0].endswith("_proto")


def _save_model(name: str, checkpoint: Path | None, folder: Path) -> None:
    net, side = _from_store(name) if checkpoint is None else _from_checkpoint(name, checkpoint)
    save = save_model if has_prototypes(name) else save_backbone
    save(net, folder, side)
    parity.write(net, folder)


def _from_store(name: str) -> tuple[Any, None]:
    architecture, _, tag = name.partition(".")
    row = table.find(architecture, tag)
    if store.find(name) is None and (row is None or table.packaged(row) is None):
        raise ValueError(f"the store ({store.location()}) lacks {name}: run `slotcon-hub import CHECKPOINT {name}`")
    return load(name).eval(), None


def _from_checkpoint(name: str, checkpoint: Path) -> tuple[Any, int | None]:
    teacher, nets = read_models(checkpoint, name)
    if name not in nets:
        raise ValueError(f"{checkpoint} holds a backbone without prototypes: publish it as {next(iter(nets))}")
    return nets[name], teacher.side


def _save_image(source: Path, path: Path) -> None:
    try:
        with Image.open(source, formats=("PNG", "JPEG")) as image:
            image.convert("RGB").save(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{source} cannot be read as a PNG or JPEG image: choose another") from error


def _with_preview(card: str) -> str:
    """Add the preview image below the title of a card."""
    matter, separator, text = card.partition("\n# ")
    title, newline, rest = text.partition("\n")
    return f"{matter}{separator}{title}{newline}\n![Preview]({PREVIEW})\n{rest}"

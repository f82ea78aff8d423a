"""Prepare a recipe: its run, images, network, and the checkpoint to start from."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from slotcon_hub import SlotCon
from slotcon_hub.models.backbone import names_weights
from training.data import scenes
from training.data.images import Images, open_images
from training.data.layouts import LAYOUTS
from training.data.streaming import ParquetStream
from training.engine.optim import make_optimizer
from training.engine.run import Run
from training.pretraining import continuing
from training.pretraining.model import build
from training.pretraining.preview import Showcase
from training.pretraining.recipes import SCENES, Recipe

__all__ = ["Pretraining", "prepare"]


@dataclass(frozen=True)
class Pretraining:
    """A pre-training that is ready to start or to resume."""

    recipe: Recipe
    run: Run
    images: Images
    showcase: Showcase
    slotcon: SlotCon

    @property
    def steps_per_epoch(self) -> int:
        """Optimisation steps in an epoch."""
        return self.recipe.steps_per_epoch(len(self.images))


def prepare(name: str, recipe: Recipe) -> Pretraining:
    """Open the data, build the model, and load the checkpoint to resume from; nothing is written.

    Raises:
        ValueError: a user error, in one sentence.
    """
    run = Run(name, recipe)
    images, digest, showcase = _data(recipe, run.processes)
    starts = not run.find_checkpoint() and not recipe.continue_from
    slotcon = build(recipe, run.processes, pretrained=starts and names_weights(recipe.backbone))
    optimizer = make_optimizer(slotcon, recipe.optimizer, weight_decay=recipe.weight_decay)
    if recipe.continue_from and run.fresh:
        behind = continuing.load(recipe.continue_from, slotcon, epoch=recipe.continue_at, epochs=recipe.epochs)
        run.step = run.updates = behind * recipe.steps_per_epoch(len(images))
    workers = (
        recipe.workers if isinstance(images, ParquetStream) else None
    )  # the workers' turns determine the order of a stream
    run.attach(
        slotcon,
        optimizer,
        recipe.schedule(len(images)),
        identity={"images": len(images), "digest": digest},
        surroundings={"compiled": recipe.compile, "workers": workers},
        refuse=_refusal(run.folder, recipe.data, len(images)),
    )
    return Pretraining(recipe, run, images, showcase, slotcon)


def _refusal(folder: Path, data: str | None, images: int) -> Callable[[str, Any, Any], str | None]:
    def refuse(setting: str, then: Any, now: Any) -> str | None:
        if setting == "images":
            those = f"the {then:,} of this run, by their names and order"
        elif setting == "digest":
            those = f"the {images:,} of this run, by their names and order"
        elif setting == "epochs":
            return (
                f"this run has epochs={then}, not {now}, and its schedule ends with them: to train longer, start a "
                f"new run with --continue-from {folder} --epochs {now}, without --resume, in another --output"
            )
        else:
            return None
        fix = "give --data the folder or the data set that holds those"
        return f"{data} holds {images:,} images, which are not {those}: {fix}"

    return refuse


def _data(recipe: Recipe, processes: PartialState) -> tuple[Images, str, Showcase]:
    """The images, their digest, and the showcase."""
    with processes.main_process_first():
        held_out = scenes.prepare() if recipe.data == SCENES else None
    source = str(held_out.train) if held_out else str(recipe.data)
    images, digest = _open(source, recipe)
    miscount = recipe.layout and LAYOUTS[recipe.layout].check_count(Path(source).expanduser(), len(images))
    if miscount and processes.is_main_process:
        print(f"warning: {miscount}", file=sys.stderr)
    recipe.steps_per_epoch(len(images))
    if held_out:
        return images, digest, Showcase.of_scenes(held_out)
    # Only the main process reads images for it.
    main = processes.is_main_process
    return images, digest, Showcase.of_images(images, recipe.view_size) if main else Showcase([])


def _open(source: str, recipe: Recipe) -> tuple[Images, str]:
    """Open the images, and check that all processes find the same ones.

    Raises:
        ValueError: a process cannot open them, or finds others; raised on all processes.
    """
    images, problem, seen = None, None, (0, "")
    try:
        where: dict[str, Any] = {"layout": recipe.layout, "streaming": recipe.streaming}
        images = open_images(source, recipe.split, recipe.image_column, **where)
        seen = (len(images), images.digest())
    except (ValueError, OSError) as error:
        problem = str(error)
    found = gather_object([(problem, seen)])
    for process, (trouble, others) in enumerate(found):
        if trouble:
            raise ValueError(trouble)
        if others != found[0][1]:
            raise ValueError(
                f"process {process} finds other images than process 0, {others[0]:,} and {found[0][1][0]:,} of "
                f"them: put the same files below {source} of every machine"
            )
    assert images is not None
    return images, seen[1]

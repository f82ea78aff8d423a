"""A run: made ready from its recipe, saved, and restored.

On the CPU, a run that was resumed, however it had ended, has the losses and the weights of one that never stopped,
bit for bit, on as many processes and threads as before. On others, the images, their views and their order, the
schedules and the steps stay exactly the same; sums are rounded otherwise, and two things change by definition: the
slot loss is a mean over the queries of each process, and what a backbone draws (drop path) depends on the process.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from slotcon_hub import SlotCon
from slotcon_hub.models.backbone import names_weights
from training.data import scenes
from training.data.images import Images, open_images
from training.data.layouts import LAYOUTS
from training.data.streaming import ParquetStream
from training.engine import checkpoint
from training.engine.optim import make_optimizer
from training.pretraining import continuing
from training.pretraining import folder as run_folder
from training.pretraining.model import accelerate, build, meet, wrap
from training.pretraining.preview import Showcase
from training.pretraining.recipes import SCENES, Recipe

__all__ = ["Run", "comparable", "prepare", "save"]

RESUMABLE = {
    "data",
    "split",
    "layout",
    "output",
    "resume",
    "workers",
    "threads",
    "log_every",
    "save_every",
    "keep",
    "keep_every",
    "show_every",
    "probe",
    "trackers",
    "mixed_precision",
    "grad_checkpointing",
    "compile",
}
"""Settings that may change when a run is resumed. Where the images are is one; which they are is not."""


@dataclass
class Run:
    """A run that is ready to go, or to go on."""

    name: str
    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    images: Images
    digest: str
    """Of the images, which tells them from others."""
    showcase: Showcase
    slotcon: SlotCon
    model: nn.Module
    """``slotcon`` as it is trained: wrapped by Accelerate."""
    optimizer: Any
    claimed: bool = False
    """Whether its folder is there and locked; if not, :func:`training.pretraining.folder.create` makes it."""
    fresh: bool = True
    """Whether it starts here, rather than at a checkpoint of its own."""
    step: int = 0
    """Steps behind us."""
    taken: int = 0
    """Those of them that moved the weights: fp16 skips a step whose gradients overflow."""
    moved: bool = True
    """Whether the last one did: if not, the teacher has nothing new to follow."""
    unreadable: set[int] = field(default_factory=set)
    """Images that could not be read so far."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimisation steps in an epoch."""
        return self.recipe.steps_per_epoch(len(self.images))

    @property
    def total_steps(self) -> int:
        """Optimisation steps in the whole run."""
        return self.recipe.epochs * self.steps_per_epoch


def prepare(name: str, recipe: Recipe) -> Run:
    """Open the data, build the model, and load the checkpoint to resume from; nothing is written.

    Raises:
        ValueError: something that the user can mend, in one sentence.
    """
    processes = meet(recipe)
    folder = run_folder.choose(name, recipe)
    accelerator = accelerate(recipe, folder)
    images, digest, showcase = _data(recipe, processes)
    path, claimed = _checkpoint(folder, processes) if recipe.resume else (None, False)
    starts = not path and not recipe.continue_from
    slotcon = build(recipe, processes, pretrained=starts and names_weights(recipe.backbone))
    optimizer = make_optimizer(slotcon, recipe.optimizer, weight_decay=recipe.weight_decay)
    resumed = checkpoint.load(path, slotcon) if path else None
    behind = 0
    if recipe.continue_from and not resumed:
        behind = continuing.load(recipe.continue_from, slotcon, epoch=recipe.continue_at, epochs=recipe.epochs)
    model, optimizer = wrap(accelerator, slotcon, optimizer)
    run = Run(name, recipe, folder, accelerator, images, digest, showcase, slotcon, model, optimizer, claimed)
    run.step = run.taken = behind * run.steps_per_epoch
    if resumed:
        run.fresh = False
        _restore(run, *resumed)
    return run


def _data(recipe: Recipe, processes: PartialState) -> tuple[Images, str, Showcase]:
    with processes.main_process_first():
        held_out = scenes.prepare() if recipe.data == SCENES else None
    source = str(held_out.train) if held_out else str(recipe.data)
    images, digest = _open(source, recipe)
    miscount = recipe.layout and LAYOUTS[recipe.layout].miscount(Path(source).expanduser(), len(images))
    if miscount and processes.is_main_process:
        print(f"warning: {miscount}", file=sys.stderr)
    recipe.steps_per_epoch(len(images))
    if held_out:
        return images, digest, Showcase.of_scenes(held_out)
    # Others than the main process need not read any image for it.
    main = processes.is_main_process
    return images, digest, Showcase.of_images(images, recipe.view_size) if main else Showcase([])


def _open(source: str, recipe: Recipe) -> tuple[Images, str]:
    """Open the images, and make sure that all processes see the same ones.

    Raises:
        ValueError: a process cannot open them, or sees others; on all processes alike.
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
                f"process {process} sees other images than process 0, {others[0]:,} and {found[0][1][0]:,} of "
                f"them: put the same files below {source} of every machine"
            )
    assert images is not None
    return images, seen[1]


def _checkpoint(folder: Path, processes: PartialState) -> tuple[Path | None, bool]:
    """Claim the folder, and choose the checkpoint to resume from, on the main process for all.

    Returns:
        None where there is no checkpoint yet; and whether there is a folder.

    Raises:
        ValueError: all are damaged; on all processes alike.
    """
    path, problem, claimed = None, None, False
    if processes.is_main_process:
        try:
            if claimed := folder.exists():
                run_folder.claim(folder)
            path, problems = checkpoint.newest(folder)
            for reason in problems:
                print(f"warning: {reason}", file=sys.stderr)
            place = path.name if path else "the beginning, since it has no checkpoint yet"
            print(f"{folder} goes on from {place}", file=sys.stderr)
        except ValueError as error:
            problem = str(error)
    path, claimed, problem = broadcast_object_list([(path, claimed, problem)])[0]
    if problem:
        raise ValueError(problem)
    return path, claimed


def save(run: Run) -> None:
    """Write a checkpoint of the run; all processes must call this together."""
    recipe, accelerator = run.recipe, run.accelerator
    if accelerator.is_main_process:
        scaler = accelerator.scaler
        states = {
            "optimizer": run.optimizer.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
        }
        progress = {
            "taken": run.taken,
            "moved": run.moved,
            "unreadable": sorted(run.unreadable),
            "surroundings": _surroundings(run),
            "settings": comparable(run),
        }
        keeping = {"keep": recipe.keep, "keep_every": recipe.keep_every * run.steps_per_epoch}
        checkpoint.save(run.folder, run.step, run.slotcon, states, progress, **keeping)
    accelerator.wait_for_everyone()


def _restore(run: Run, states: dict[str, Any], progress: dict[str, Any]) -> None:
    """Continue from a checkpoint: optimiser, scaler and place; the weights are loaded already.

    Raises:
        ValueError: the run was started with other settings.
    """
    defaults = run_folder.plain(asdict(Recipe()))
    for setting, now in comparable(run).items():
        then = progress["settings"].get(setting, defaults.get(setting, now))  # it may be younger than the run
        if isinstance(now, dict):
            then = {key: {**defaults[setting], **then}[key] for key in now}
        if then != now and setting in ("images", "digest"):
            those, these = progress["settings"]["images"], len(run.images)
            raise ValueError(
                f"{run.recipe.data} holds {these:,} images, which are not the {those:,} of this run, by their "
                "names and order: give --data the folder or the data set that holds those"
            )
        if then != now and setting == "epochs":
            raise ValueError(
                f"this run has epochs={then}, not {now}, and its schedule ends with them: to train longer, start a "
                f"new run with --continue-from {run.folder} --epochs {now}, without --resume, in another --output"
            )
        if then != now:
            raise ValueError(
                f"this run has {setting}={then}, not {now}: resume it with the recipe and options it has"
            )
    before = progress["surroundings"]
    changed = [
        f"{k}={now} in place of {before.get(k)}" for k, now in _surroundings(run).items() if now != before.get(k)
    ]
    if changed:
        note = f"note: resumed with {', '.join(changed)}: the numbers go on from here, but not bit for bit"
        run.accelerator.print(note, file=sys.stderr)
    run.optimizer.load_state_dict(states["optimizer"])
    if run.accelerator.scaler and states["scaler"]:
        run.accelerator.scaler.load_state_dict(states["scaler"])
    run.step, run.taken, run.moved = progress["step"], progress["taken"], progress["moved"]
    run.unreadable = set(progress["unreadable"])


def comparable(run: Run) -> dict[str, Any]:
    """The settings that a resumed run must share with the one that it continues, as plain values."""
    settings = {k: v for k, v in asdict(run.recipe).items() if k not in RESUMABLE}
    return run_folder.plain({**settings, "images": len(run.images), "digest": run.digest})


def _surroundings(run: Run) -> dict[str, Any]:
    """What the numbers depend on beside the settings: in which order sums run, and of a stream, the images."""
    accelerator = run.accelerator
    return {
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads() if accelerator.device.type == "cpu" else None,
        "device": accelerator.device.type,
        "precision": accelerator.mixed_precision,
        "compiled": run.recipe.compile,
        "workers": run.recipe.workers if isinstance(run.images, ParquetStream) else None,
    }

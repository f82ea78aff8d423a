"""Pre-train SlotCon: ``accelerate launch training/pretrain.py [recipe] [options]``.

Without the name of a recipe it is the demo. ``fit`` is the loop.
"""

import contextlib
import copy
import itertools
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import parse_flag_from_env, set_seed
from torch import Tensor, nn

from slotcon_hub import SlotCon, distributed
from slotcon_hub.export import prototype_model
from slotcon_hub.functional import teacher_momentum
from training import checkpoint, color, run_folder, scenes
from training.data import Steps, TooManyUnreadable, Unreadable, ViewPairs, make_loader
from training.layouts import LAYOUTS
from training.monitor import Diverged, Monitor
from training.optim import lr_at, make_optimizer
from training.pictures import Pictures, open_pictures
from training.recipes import SCENES, Recipe, parse
from training.showcase import Showcase
from training.streaming import ParquetStream, Unreachable
from training.views import TwoViews

RESUMABLE = {
    "output",
    "resume",
    "workers",
    "threads",
    "log_every",
    "save_every",
    "keep",
    "trackers",
    "mixed_precision",
}
"""Settings that may change when a run is resumed."""


@dataclass
class Run:
    """A run that is ready to go, or to go on."""

    name: str
    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    pictures: Pictures
    showcase: Showcase
    slotcon: SlotCon
    model: nn.Module
    """``slotcon`` as it is trained: wrapped by Accelerate."""
    optimizer: Any
    step: int = 0
    """Steps behind us."""
    taken: int = 0
    """Those of them that moved the weights: fp16 skips a step whose gradients overflow."""
    moved: bool = True
    """Whether the last one did: if not, the teacher has nothing new to follow."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line; what a user can cause ends in one sentence."""
    try:
        run = prepare(*parse(list(sys.argv[1:] if argv is None else argv)))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    try:
        fit(run)
    except (Diverged, TooManyUnreadable) as error:
        raise SystemExit(f"error: {error}") from None
    except Unreachable as error:
        raise SystemExit(f"error: {str(error).splitlines()[-1]}") from None  # below the traceback of its worker
    if run.accelerator.is_main_process:
        run_folder.finish(run.folder, run.slotcon, run.showcase, run.recipe, run.name)
    run.accelerator.end_training()


def prepare(name: str, recipe: Recipe) -> Run:
    """Open the data, build the model, and load the checkpoint to resume from.

    Raises:
        ValueError: something that the user can mend, in one sentence; nothing is written then.
    """
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if int(os.environ.get("WORLD_SIZE", 1)) != processes.num_processes:
        raise ValueError("several processes were launched without GPUs for them: set ACCELERATE_USE_CPU=true")
    if processes.device.type == "cpu":
        neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(recipe.threads or max((os.cpu_count() or 1) // neighbours, 1))
    recipe.micro_batch(processes.num_processes)
    missing = set(recipe.trackers) - {str(t) for t in get_available_trackers()}
    if missing:
        raise ValueError(f"tracker {', '.join(sorted(missing))} is not installed: install it or drop it")
    with processes.main_process_first():
        held_out = scenes.prepare() if recipe.data == SCENES else None
    source = str(held_out.train) if held_out else str(recipe.data)
    where = {"layout": recipe.layout, "streaming": recipe.streaming}
    pictures = open_pictures(source, recipe.split, recipe.image_column, **where)
    miscount = recipe.layout and LAYOUTS[recipe.layout].miscount(Path(source).expanduser(), len(pictures))
    if miscount and processes.is_main_process:
        print(f"warning: {miscount}", file=sys.stderr)
    recipe.steps_per_epoch(len(pictures))

    slotcon = build(recipe, processes)
    optimizer = make_optimizer(slotcon, recipe.optimizer, weight_decay=recipe.weight_decay)
    folder = run_folder.choose(name, recipe)
    resumed = checkpoint.load(checkpoint.latest(folder), slotcon) if recipe.resume else None

    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        log_with=list(recipe.trackers),
        project_dir=folder,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError("fp16 needs a GPU: use --mixed-precision bf16 or no")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("accelerate is set to accumulate gradients: set that to 1, and use --accumulation-steps")
    with warnings.catch_warnings():  # Accelerate knows this option of DDP by its older name alone
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        model, optimizer = accelerator.prepare(slotcon, optimizer)
    size = recipe.view_size
    if held_out:
        showcase = Showcase.of_scenes(held_out)
    else:  # others than the main process need not read any picture for it
        showcase = Showcase.of_pictures(pictures, size) if processes.is_main_process else Showcase([])
    run = Run(name, recipe, folder, accelerator, pictures, showcase, slotcon, model, optimizer)
    if resumed:
        restore(run, *resumed)
    start = None if resumed else settled(run)
    if accelerator.is_main_process:
        run_folder.describe(folder, name, recipe, len(pictures), accelerator)
        if start:
            run_folder.before(folder, start, showcase)
    settings = {k: str(v) for k, v in comparable(run).items()}
    accelerator.init_trackers("slotcon", config={"recipe": name, **settings})
    return run


def build(recipe: Recipe, processes: PartialState) -> SlotCon:
    """Build the model of a recipe, and make sure that it can be trained on its views and exported.

    Raises:
        ValueError: it cannot.
    """
    set_seed(recipe.seed)
    slotcon = SlotCon(recipe.backbone, recipe.slotcon)
    prototypes = prototype_model(slotcon)
    try:
        prototypes(torch.zeros(1, 3, recipe.view_size, recipe.view_size))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"{recipe.backbone} cannot take views of {recipe.view_size} pixels: {error}") from None
    if recipe.channels_last:
        slotcon.to(memory_format=torch.channels_last)
    if processes.num_processes > 1:
        distributed.synchronize_batchnorm(slotcon, processes.device.type)
    return slotcon


@torch.no_grad()
def settled(run: Run, forwards: int = 20) -> SlotCon:
    """The random initialisation with BatchNorm statistics of the data, as fair a start as one without training."""
    slotcon = copy.deepcopy(run.slotcon)
    slotcon.teacher.train()
    for batch in itertools.islice(load(run, range(forwards)), forwards):
        views, *_ = to_device(batch, run.accelerator.device, run.recipe.channels_last)
        for view in views:
            slotcon.teacher(view)
    return slotcon


def fit(run: Run) -> None:
    """Train from ``run.step`` to the end of the last epoch."""
    recipe, accelerator, slotcon = run.recipe, run.accelerator, run.slotcon
    steps_per_epoch = recipe.steps_per_epoch(len(run.pictures))
    total_steps = recipe.epochs * steps_per_epoch
    warmup_steps = round(recipe.warmup_epochs * steps_per_epoch)
    steps = range(run.step, total_steps)
    loader = iter(load(run, steps))
    unreadable = Unreadable(run.pictures, accelerator)
    monitor = Monitor(run.folder, accelerator, steps, recipe.batch_size, recipe.log_every)
    slotcon.train()

    for step in steps:
        lr = lr_at(run.taken, base_lr=recipe.peak_lr, warmup_steps=warmup_steps, total_steps=total_steps)
        momentum = teacher_momentum(run.taken, total_steps, recipe.slotcon.teacher_momentum)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        if run.moved:
            slotcon.update_teacher(momentum)
        for micro in range(1, recipe.accumulation_steps + 1):
            with monitor.waiting():
                batch = next(loader)
            unreadable.add(batch.pop("unreadable"))
            whole = micro == recipe.accumulation_steps
            with contextlib.nullcontext() if whole else accelerator.no_sync(run.model):
                out = run.model(*to_device(batch, accelerator.device, recipe.channels_last))
                accelerator.backward(out.loss / recipe.accumulation_steps)
            monitor.add(out)
        run.optimizer.step()
        run.optimizer.zero_grad()

        run.step = step + 1
        run.moved = not accelerator.optimizer_step_was_skipped
        run.taken += run.moved
        saving = run.step % (recipe.save_every * steps_per_epoch) == 0 or run.step == total_steps
        values = {"epoch": run.step / steps_per_epoch, "lr": lr, "teacher_momentum": momentum}
        if monitor.step(run.step, {**values, "unreadable": len(unreadable.all)}, saving):
            unreadable.check()
        if saving:
            save(run)
    monitor.close()


def load(run: Run, steps: range) -> Any:
    """Make the loader of this process's micro-batches."""
    recipe, accelerator = run.recipe, run.accelerator
    views = TwoViews(recipe.view_size, (recipe.min_crop, 1.0), geometric=recipe.geometric)
    plan = Steps(
        len(run.pictures),
        recipe.batch_size,
        steps,
        seed=recipe.seed,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        accumulation=recipe.accumulation_steps,
        groups=run.pictures.groups if isinstance(run.pictures, ParquetStream) else None,
        workers=recipe.workers,
    )
    return make_loader(ViewPairs(run.pictures, views, recipe.seed), plan, recipe.workers)


def to_device(
    batch: dict[str, Tensor], device: torch.device, channels_last: bool
) -> tuple[tuple[Tensor, ...], ...]:
    """Send a batch to the device, colour its views there, and return views, boxes and flips as pairs."""
    crops = batch["views"].to(device, non_blocking=True)
    views = color.apply(crops.flatten(0, 1), batch["color"].flatten(0, 1))
    if channels_last:
        views = views.contiguous(memory_format=torch.channels_last)
    boxes, flips = (batch[key].to(device, non_blocking=True) for key in ("boxes", "flips"))
    return tuple(views.chunk(2)), tuple(boxes), tuple(flips)


def save(run: Run) -> None:
    """Write a checkpoint of the run."""
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        states = {
            "optimizer": run.optimizer.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
        }
        progress = {"taken": run.taken, "moved": run.moved, "settings": comparable(run)}
        checkpoint.save(run.folder, run.step, run.slotcon, states, progress, run.recipe.keep)
    run.accelerator.wait_for_everyone()


def restore(run: Run, states: dict[str, Any], progress: dict[str, Any]) -> None:
    """Continue from a checkpoint: optimiser, scaler and place; the weights are loaded already.

    Raises:
        ValueError: the run was started with other settings.
    """
    for setting, now in comparable(run).items():
        then = progress["settings"].get(setting)
        if then != now:
            raise ValueError(
                f"this run has {setting}={then}, not {now}: resume it with the recipe and options it has"
            )
    run.optimizer.load_state_dict(states["optimizer"])
    if run.accelerator.scaler and states["scaler"]:
        run.accelerator.scaler.load_state_dict(states["scaler"])
    run.step, run.taken, run.moved = progress["step"], progress["taken"], progress["moved"]


def comparable(run: Run) -> dict[str, Any]:
    """The settings that a resumed run must share with the one that it continues, as plain values."""
    settings = {k: v for k, v in asdict(run.recipe).items() if k not in RESUMABLE}
    return json.loads(json.dumps({**settings, "pictures": len(run.pictures)}, default=str))


if __name__ == "__main__":
    main()

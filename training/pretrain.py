"""Pre-train SlotCon: ``accelerate launch training/pretrain.py [recipe] [options]``.

Without the name of a recipe it is the demo. ``fit`` is the loop.
"""

import training  # noqa: F401  (first: it tells OpenMP how to wait, before torch is loaded)

# isort: split
import contextlib
import copy
import itertools
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from slotcon_hub import SlotCon, SlotConOutput
from slotcon_hub.functional import teacher_momentum
from training.data import color
from training.data.streaming import ParquetStream, Unreachable
from training.data.views import TwoViews
from training.engine.errors import naming_lost_workers
from training.engine.metrics import Diverged, Monitor
from training.engine.optim import lr_at
from training.engine.signals import Stop
from training.pretraining import folder as run_folder
from training.pretraining.pairs import Steps, TooManyUnreadable, Unreadable, ViewPairs, make_loader, seed_step
from training.pretraining.recipes import parse
from training.pretraining.run import Run, comparable, prepare, save
from training.pretraining.watch import Watch


def main(argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line; what a user can cause ends in one sentence."""
    try:
        run = prepare(*parse(list(sys.argv[1:] if argv is None else argv)))
        watch = Watch(run)
        begin(run)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("error: interrupted before the first step") from None
    with Stop(run.accelerator) as stop:
        try:
            with naming_lost_workers("--resume goes on from the last checkpoint"):
                fit(run, watch, stop)
            if run.accelerator.is_main_process:
                end(run)
            run.accelerator.end_training()
        except (Diverged, TooManyUnreadable, OSError) as error:
            raise SystemExit(f"error: {error}") from None
        except Unreachable as error:
            reason = str(error).rpartition("Unreachable: ")[2].strip()  # a worker puts its traceback before it
            raise SystemExit(f"error: {reason}") from None
        except KeyboardInterrupt:
            raise SystemExit("error: interrupted: --resume goes on from the last checkpoint") from None


def begin(run: Run) -> None:
    """Open the folder of the run, and measure where a new run starts from."""
    if not run.claimed:
        run.folder = run_folder.create(run.folder, named=run.recipe.output is not None)
        run.accelerator.project_configuration.set_directories(str(run.folder))  # of the trackers
    start = settled(run) if run.fresh and run.showcase.held_out else None
    if run.accelerator.is_main_process:
        step = None if run.fresh else run.step
        run_folder.describe(run.folder, run.name, run.recipe, len(run.images), run.accelerator, step)
        if start:
            run_folder.before(run.folder, start, run.showcase)
    settings = {k: str(v) for k, v in comparable(run).items()}
    run.accelerator.init_trackers(
        "slotcon",
        config={"recipe": run.name, "data": run.recipe.data, **settings},
        init_kwargs={"tensorboard": {"purge_step": run.step + 1}},  # what was written after the checkpoint is void
    )


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


def rehearse(run: Run) -> None:
    """Take a step that leaves no trace, on noise.

    DistributedDataParallel arranges the gradients anew after the first step that it sees, and their sums over
    processes with them; a run that is resumed would differ in the last bits from one that never stopped.
    """
    if run.accelerator.num_processes == 1:
        return
    recipe, device = run.recipe, run.accelerator.device
    batch = recipe.micro_batch(run.accelerator.num_processes)
    view = torch.randn(batch, 3, recipe.view_size, recipe.view_size, device=device)
    box, flip = torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).expand(batch, 4), view.new_zeros(batch).bool()
    with keeping_buffers(run.slotcon):
        forward_backward(run.accelerator, run.model, run.slotcon, ((view, view), (box, box), (flip, flip)))
    run.optimizer.zero_grad()


def fit(run: Run, watch: Watch, stop: Stop) -> None:
    """Train from ``run.step`` to the end of the last epoch, or until it is agreed to stop."""
    recipe, accelerator, slotcon = run.recipe, run.accelerator, run.slotcon
    steps_per_epoch, total_steps = run.steps_per_epoch, run.total_steps
    warmup_steps = round(recipe.warmup_epochs * steps_per_epoch)
    steps = range(run.step, total_steps)
    loader = iter(load(run, steps))
    unreadable = Unreadable(run.images, accelerator, run.unreadable)
    monitor = Monitor(run.folder, accelerator, steps, recipe.batch_size, recipe.log_every)
    slotcon.train()
    rehearse(run)

    for step in steps:
        seed_step(recipe.seed, step, accelerator.process_index)
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
            out = forward_backward(
                accelerator,
                run.model,
                slotcon,
                to_device(batch, accelerator.device, recipe.channels_last),
                share=1 / recipe.accumulation_steps,
                sync=micro == recipe.accumulation_steps,
                recompute=recipe.grad_checkpointing,
            )
            monitor.add(out, step + 1)
        accelerator.unscale_gradients()
        monitor.add_gradients(slotcon.parameters(), step + 1)
        run.optimizer.step()
        run.optimizer.zero_grad()

        run.step, run.moved = step + 1, not accelerator.optimizer_step_was_skipped
        run.taken += run.moved
        saving = run.step % (recipe.save_every * steps_per_epoch) == 0 or run.step == total_steps
        values = {"epoch": run.step / steps_per_epoch, "lr": lr, "teacher_momentum": momentum}
        if looking := watch.due(run.step):
            with monitor.pausing():
                values |= watch.look(run.step, monitor)
        line = monitor.step(run.step, {**values, "unreadable": len(run.unreadable)}, saving or looking)
        if line:
            unreadable.check()
        stopping = line and stop.agreed()  # at lines alone, so that a resumed run writes the lines of any other
        if saving or stopping:
            save(run)
        if stopping:
            break
    monitor.close()


def end(run: Run) -> None:
    """Write what a run leaves behind; if it was stopped, say how it goes on."""
    if run.step == run.total_steps:
        run_folder.finish(run.folder, run.slotcon, run.showcase, run.recipe, run.name)
    else:
        command = f"the same command with --output {shlex.quote(str(run.folder))} --resume goes on from there"
        print(f"stopped at step {run.step} of {run.total_steps}, and saved: {command}")


def load(run: Run, steps: range) -> Any:
    """Make the loader of this process's micro-batches."""
    recipe, accelerator = run.recipe, run.accelerator
    views = TwoViews(recipe.view_size, (recipe.min_crop, 1.0), geometric=recipe.geometric)
    plan = Steps(
        len(run.images),
        recipe.batch_size,
        steps,
        seed=recipe.seed,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        accumulation=recipe.accumulation_steps,
        groups=run.images.groups if isinstance(run.images, ParquetStream) else None,
        workers=recipe.workers,
    )
    return make_loader(ViewPairs(run.images, views, recipe.seed), plan, recipe.workers)


def forward_backward(
    accelerator: Accelerator,
    model: nn.Module,
    slotcon: SlotCon,
    batch: tuple[Any, Any, Any],
    *,
    share: float = 1.0,
    sync: bool = True,
    recompute: bool = False,
    lap: Callable[[str], None] = lambda part: None,
) -> SlotConOutput:
    """Add the gradients of a micro-batch, one view of the student after the other.

    Every term of the loss depends on one student view, so its activations are gone before the next view's begin:
    half the memory of both together, and the same gradients.

    Args:
        accelerator: of the run.
        model: ``slotcon`` as it is trained, wrapped by accelerate.
        slotcon: whose teacher makes the targets.
        batch: views, boxes and flips.
        share: of the micro-batch in the loss of the step.
        sync: sum the gradients over the processes, in the last backward; False in all but the last micro-batch.
        recompute: the backward repeats forwards (gradient checkpointing), which must not move BatchNorm statistics.
        lap: called with the name of each part when it is over.
    """
    with accelerator.autocast():  # which accelerate adds to the forward of the model alone
        targets = slotcon.teach(*batch)
    lap("slots and losses")
    outputs = []
    for direction in (0, 1):
        with contextlib.nullcontext() if sync and direction == 1 else accelerator.no_sync(model):
            out = model(*batch, targets=targets, directions=(direction,))
            lap("slots and losses")
            with keeping_buffers(slotcon) if recompute else contextlib.nullcontext():
                accelerator.backward(out.loss * share)
            lap("backward")
        outputs.append(replace(out, loss=out.loss.detach()))
    return outputs[0] + outputs[1]


@contextlib.contextmanager
def keeping_buffers(module: nn.Module) -> Iterator[None]:
    """Give a module its buffers back afterwards: BatchNorm's statistics, which each forward inside moves."""
    buffers = list(module.buffers())
    before = [buffer.clone() for buffer in buffers]
    yield
    torch._foreach_copy_(buffers, before)


def to_device(batch: dict[str, Tensor], device: torch.device, channels_last: bool) -> tuple[Any, Any, Any]:
    """Send a batch to the device, colour its views there, and return views, boxes and flips as pairs."""
    crops = batch["views"].to(device, non_blocking=True)
    views = color.apply(crops.flatten(0, 1), batch["color"].flatten(0, 1))
    if channels_last:
        views = views.contiguous(memory_format=torch.channels_last)
    boxes, flips = (batch[key].to(device, non_blocking=True) for key in ("boxes", "flips"))
    return tuple(views.chunk(2)), tuple(boxes), tuple(flips)


if __name__ == "__main__":
    main()

"""Pre-train SlotCon: ``accelerate launch training/pretrain.py [recipe] [options]``.

The default recipe is the demo. ``fit`` is the loop.
"""

import training  # noqa: F401  (first: it tells OpenMP how to wait, before torch is loaded)

# isort: split
import contextlib
import copy
import itertools
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
from training.data.plan import Steps
from training.data.streaming import ParquetStream
from training.data.views import TwoViews
from training.engine.batchnorm import recalibrate_batchnorm, restore_buffers
from training.engine.errors import one_line_errors
from training.engine.memory_format import memory_format
from training.engine.optim import lr_at
from training.pretraining.diagnostics import SHOWN, diagnose, metrics
from training.pretraining.pairs import Unreadable, ViewPairs, make_loader
from training.pretraining.prepare import Pretraining, prepare
from training.pretraining.recipes import parse
from training.pretraining.result import finish, save_baseline
from training.pretraining.watch import Watch

LAYERS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BASELINE = 20  # batches for the BatchNorm statistics of the random-init baseline


def main(argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line; user errors end in one sentence."""
    with one_line_errors(ValueError, OSError, interrupted="interrupted before the first step"):
        job = prepare(*parse(list(sys.argv[1:] if argv is None else argv)))
        watch = Watch(job)
        start(job)
    with job.run.training():
        fit(job, watch)
        if job.run.is_main:
            end(job)


def start(job: Pretraining) -> None:
    """Open the folder of the run, and measure the random-init baseline of a new one."""
    run, recipe = job.run, job.recipe
    run.open("slotcon", {"images": len(job.images), "steps": run.schedule.total_steps, "peak_lr": recipe.peak_lr})
    if run.fresh and job.showcase.held_out:
        baseline = copy.deepcopy(job.slotcon)
        with run.accelerator.autocast():
            recalibrate_batchnorm(baseline.teacher, views(job, range(BASELINE)))
        if run.is_main:
            save_baseline(run.folder, baseline, job.showcase)


def fit(job: Pretraining, watch: Watch) -> None:
    """Train from the next step to the end of the last epoch, or until a signal to stop."""
    run, recipe, slotcon = job.run, job.recipe, job.slotcon
    accelerator, total_steps = run.accelerator, run.schedule.total_steps
    warmup_steps = round(recipe.warmup_epochs * job.steps_per_epoch)
    unreadable = Unreadable(job.images, accelerator, run.state.setdefault("unreadable", []))
    slotcon.train()
    run.warm_up_ddp(lambda: forward_backward(accelerator, run.model, slotcon, noise(job)))

    loader = load(job, range(run.step, total_steps))
    for step in run.steps(loader, at_line=unreadable.check, diagnose=diagnose, shown=SHOWN):
        step.set_lr(lr_at(run.updates, base_lr=recipe.peak_lr, warmup_steps=warmup_steps, total_steps=total_steps))
        momentum = teacher_momentum(run.updates, total_steps, recipe.slotcon.teacher_momentum)
        if run.updated:
            slotcon.update_teacher(momentum)
        for batch in step.micro_batches():
            unreadable.add(batch.pop("unreadable"))
            inputs = to_device(batch, accelerator, memory_format(slotcon))
            recompute = recipe.grad_checkpointing
            out = forward_backward(accelerator, run.model, slotcon, inputs, share=step.share, recompute=recompute)
            step.add(metrics(out))
        step.update()
        step.log(epoch=run.step / job.steps_per_epoch, teacher_momentum=momentum, unreadable=len(unreadable))
        if watch.due(run.step):
            with step.evaluating():
                step.log(**watch.evaluate())


def end(job: Pretraining) -> None:
    """Write the results of a finished run; if it was stopped, print how to resume it."""
    run = job.run
    if run.finished:
        finish(run.folder, job.slotcon, job.showcase, job.recipe, run.name)
    else:
        run.print_resume_command()


def load(job: Pretraining, steps: range) -> Any:
    """Create the loader of this process's micro-batches of some steps."""
    recipe, images = job.recipe, job.images
    views = TwoViews(recipe.view_size, (recipe.min_crop, 1.0), geometric=recipe.geometric)
    plan = Steps(
        len(images),
        recipe.batch_size,
        steps,
        **job.run.shard,
        groups=images.groups if isinstance(images, ParquetStream) else None,
        workers=recipe.workers,
    )
    on_cpu = job.run.accelerator.device.type == "cpu"
    return make_loader(ViewPairs(images, views, recipe.seed), plan, recipe.workers, augmented=on_cpu)


def views(job: Pretraining, steps: range) -> Iterator[Tensor]:
    """Yield one batch of views per step, B x 3 x S x S, alternating between the two views of a pair."""
    for batch in itertools.islice(load(job, steps), len(steps)):
        yield from to_device(batch, job.run.accelerator, memory_format(job.slotcon))[0]


def noise(job: Pretraining) -> tuple[Any, Any, Any]:
    """Random inputs with the shape of a micro-batch: views, boxes and flips."""
    recipe, device = job.recipe, job.run.accelerator.device
    batch = recipe.micro_batch(job.run.accelerator.num_processes)
    view = torch.randn(batch, 3, recipe.view_size, recipe.view_size, device=device)
    view = view.to(LAYERS[job.run.accelerator.mixed_precision])
    box, flip = torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).expand(batch, 4), view.new_zeros(batch).bool()
    return (view, view), (box, box), (flip, flip)


def forward_backward(
    accelerator: Accelerator,
    model: nn.Module,
    slotcon: SlotCon,
    batch: tuple[Any, Any, Any],
    *,
    share: float = 1.0,
    recompute: bool = False,
    lap: Callable[[str], None] = lambda part: None,
) -> SlotConOutput:
    """Accumulate the gradients of a micro-batch, one view of the student after the other.

    Every term of the loss depends on one student view, so the activations of only one view are in memory: half the
    memory, with the same gradients.

    Args:
        accelerator: of the run.
        model: ``slotcon`` wrapped by accelerate.
        slotcon: its teacher makes the targets.
        batch: views, boxes and flips.
        share: weight of the micro-batch in the loss of the step.
        recompute: gradient checkpointing repeats forwards, which must not update BatchNorm statistics.
        lap: called with the name of each part at its end.
    """
    with accelerator.autocast():  # accelerate only adds it to the model's forward
        targets = slotcon.teach(*batch)
    lap("slots and losses")
    outputs = []
    for direction in (0, 1):
        with contextlib.nullcontext() if direction == 1 else accelerator.no_sync(model):
            out = model(*batch, targets=targets, directions=(direction,))
            lap("slots and losses")
            with restore_buffers(slotcon) if recompute else contextlib.nullcontext():
                accelerator.backward(out.loss * share)
            lap("backward")
        outputs.append(replace(out, loss=out.loss.detach()))
    return outputs[0] + outputs[1]


def to_device(
    batch: dict[str, Tensor], accelerator: Accelerator, layout: torch.memory_format
) -> tuple[Any, Any, Any]:
    """Move a batch to the device, augment the colours there if the loader did not, and split it into pairs.

    Returns:
        Views, in the precision of the layers: what autocast would make of them in each forward; boxes; and flips.
    """
    device = accelerator.device
    crops = batch["views"].to(device, non_blocking=True)
    views = crops.flatten(0, 1)
    if "color" in batch:
        views = color.apply(views, batch["color"].flatten(0, 1))
    views = views.to(LAYERS[accelerator.mixed_precision], memory_format=layout)
    boxes, flips = (batch[key].to(device, non_blocking=True) for key in ("boxes", "flips"))
    return tuple(views.chunk(2)), tuple(boxes), tuple(flips)


if __name__ == "__main__":
    main()

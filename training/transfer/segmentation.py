"""Transfer to semantic segmentation: ``accelerate launch training/transfer/segmentation.py voc --data DIR``.

The paper's networks and recipes for VOC, Cityscapes and ADE20K (supplementary A.2.2); the training loop is ``fit``.
"""

import training  # noqa: F401  (first: it tells OpenMP how to wait, before torch is loaded)

# isort: split
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.data.images import UnreadableImage
from training.data.plan import Steps
from training.engine.errors import RunError, one_line_errors
from training.engine.memory_format import memory_format
from training.engine.processes import any_size
from training.transfer.semantic.crops import Crops, make_loader
from training.transfer.semantic.evaluation import count
from training.transfer.semantic.model import pixel_loss
from training.transfer.semantic.prepare import Segmentation, prepare
from training.transfer.semantic.recipes import lr_at, parse
from training.transfer.semantic.report import measure
from training.transfer.semantic.result import finish
from training.transfer.semantic.transforms import Crop, normalize


def main(argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line; a user's errors exit without traceback."""
    with one_line_errors(ValueError, OSError, interrupted="interrupted before the first step"):
        job = prepare(*parse(list(sys.argv[1:] if argv is None else argv)))
        facts = {"images": len(job.data.train), "test_images": len(job.data.val), "class_names": job.data.classes}
        job.run.open("segmentation", facts)
    with job.run.training():
        fit(job)
        end(job)


def fit(job: Segmentation) -> None:
    """Train from the next step to the last, or until the processes agree to stop."""
    run, recipe, net = job.run, job.recipe, job.net.train()
    run.warm_up_ddp(lambda: take_dummy_step(job))

    for step in run.steps(load(job, range(run.step, recipe.steps))):
        step.set_lr(lr_at(run.step, recipe))
        for crops in step.micro_batches():
            metrics = losses(job, crops)
            step.backward(metrics["loss"], metrics)
        step.update()
        step.log(epoch=run.step * recipe.batch_size / len(job.data.train))
        if recipe.test_every and run.step % recipe.test_every == 0 and not run.finished:
            with step.evaluating():
                numbers = measure(evaluate(job)[0], job.data.classes)
                step.log(miou=numbers["miou"], pixel_accuracy=numbers["pixel_accuracy"])
                net.train()


def end(job: Segmentation) -> None:
    """Test and write the results; if the run was stopped, print how to resume it."""
    run = job.run
    if run.finished:
        confusion, examples = evaluate(job, shown=job.recipe.shown)
        if run.is_main:
            finish(job, confusion, examples)
    elif run.is_main:
        run.print_resume_command()


def losses(job: Segmentation, crops: Crop) -> dict[str, Tensor]:
    """Compute the loss of a micro-batch and its parts, means over pixels."""
    recipe, device = job.recipe, job.run.accelerator.device
    images, truth, sizes = (part.to(device, non_blocking=True) for part in crops)
    x = normalize(images, job.cfg, sizes).contiguous(memory_format=memory_format(job.net))
    out = job.run.model(x)
    mean: dict[str, Any] = {"align_corners": recipe.align_corners, "average": recipe.average}
    loss = pixel_loss(out.logits, truth, **mean)
    if out.auxiliary is None:
        return {"loss": loss}
    auxiliary = recipe.auxiliary_weight * pixel_loss(out.auxiliary, truth, **mean)
    return {"loss": loss + auxiliary, "head_loss": loss, "auxiliary_loss": auxiliary}


def evaluate(job: Segmentation, shown: int = 0) -> tuple[Tensor, list[Any]]:
    """Compute confusion matrix and examples of all test images; leaves the network in eval mode."""
    recipe = job.recipe
    try:
        with contextlib.nullcontext() if recipe.window else any_size():
            return count(job.predictor, job.data.val, job.run.accelerator, workers=recipe.workers, shown=shown)
    except ValueError as error:  # of an image or a mask
        fix = ": repair it, since no test image may be left out" if isinstance(error, UnreadableImage) else ""
        raise RunError(f"{error}{fix}; then test the last checkpoint by --resume") from None


def load(job: Segmentation, steps: range) -> Any:
    """Create the loader of this process's micro-batches for a range of steps."""
    recipe, train = job.recipe, job.data.train
    plan = Steps(len(train), recipe.batch_size, steps, **job.run.shard)
    return make_loader(Crops(train, job.augmentation, recipe.seed), plan, recipe.workers)


def take_dummy_step(job: Segmentation) -> None:
    """Run forward and backward on noise of the training shape.

    Raises:
        RunError: some parameters get no gradient, on which DDP would fail.
    """
    side, batch = job.recipe.crop, job.recipe.micro_batch(job.run.accelerator.num_processes)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    crops = Crop(images, images[:, 0] % len(job.data.classes), torch.full((batch, 2), side))
    job.run.accelerator.backward(losses(job, crops)["loss"])
    if idle := [name for name, value in job.net.named_parameters() if value.grad is None]:
        raise RunError(
            f"{job.recipe.backbone} has parameters without gradient, such as {idle[0]}: train it in one process, "
            "or choose another --backbone"
        )


if __name__ == "__main__":
    main()

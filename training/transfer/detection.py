"""Transfer to detection: ``accelerate launch training/transfer/detection.py coco_1x --data DIR``.

Boxes and masks of instances: the paper's Mask R-CNN R50-FPN on COCO (supplementary A.2.1), exact to Detectron2;
``fit`` is the loop.
"""

import training  # noqa: F401  (first: it tells OpenMP how to wait, before torch is loaded)

# isort: split
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from training.engine.batchnorm import average_batchnorm
from training.engine.errors import one_line_errors
from training.engine.signals import loading
from training.transfer.mask_rcnn.evaluation import detect_all, measure
from training.transfer.mask_rcnn.examples import AspectBatches, Batch, collate
from training.transfer.mask_rcnn.prepare import Detection, prepare
from training.transfer.mask_rcnn.recipes import lr_at, parse
from training.transfer.mask_rcnn.result import finish
from training.transfer.mask_rcnn.target import Target


def main(argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line; a user's errors exit without traceback."""
    with one_line_errors(ValueError, OSError, interrupted="interrupted before the first step"):
        job = prepare(*parse(list(sys.argv[1:] if argv is None else argv)))
        facts = {"images": len(job.train), "test_images": len(job.val), "class_names": job.val.classes}
        job.run.open("detection", facts)
    with job.run.training():
        fit(job)
        end(job)


def fit(job: Detection) -> None:
    """Train from the next step to the last, or until the processes agree to stop."""
    run, recipe = job.run, job.recipe
    job.detector.train()
    run.warm_up_ddp(lambda: run.accelerator.backward(losses(job, noise(job))["loss"]))

    for step in run.steps(load(job, range(run.step, recipe.steps))):
        step.set_lr(lr_at(run.step, recipe))
        for batch in step.micro_batches():
            metrics = losses(job, batch)
            step.backward(metrics["loss"], metrics)
        step.update()
        step.log(epoch=run.step * recipe.batch_size / len(job.train))
        if recipe.test_every and run.step % recipe.test_every == 0 and not run.finished:
            with step.evaluating():
                test_in_between(job, step)


def end(job: Detection) -> None:
    """Test and write the results; if the run was stopped, print how to resume it."""
    run = job.run
    if run.finished:
        results = test(job)
        if run.is_main:
            finish(job, results)
    elif run.is_main:
        run.print_resume_command()


def losses(job: Detection, batch: Batch) -> dict[str, Tensor]:
    """Compute the five losses of a micro-batch, and their sum."""
    parts = job.run.model(batch.images(job.run.accelerator.device), batch.targets)
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def test(job: Detection) -> list[dict[str, Any]]:
    """Re-estimate the BatchNorm statistics, and detect in the val images; returns results on the main process."""
    run, recipe = job.run, job.recipe
    device = run.accelerator.device
    if recipe.recalibration_steps:
        batches = load(job, range(run.step, run.step + recipe.recalibration_steps))
        average_batchnorm(job.detector, ((batch.images(device), batch.targets) for batch in batches))
    return detect_all(job.detector, job.val, recipe.workers)


def test_in_between(job: Detection, step: Any) -> None:
    """Test, and log the average precisions."""
    results = test(job)
    if job.run.is_main:
        numbers = measure(job.val, results)
        step.log(box_ap=numbers["boxes"]["AP"], mask_ap=numbers["masks"]["AP"])
    job.detector.train()


def load(job: Detection, steps: range) -> DataLoader[Any]:
    """Create the loader of this process's micro-batches for a range of steps."""
    plan = AspectBatches(job.train.wide(), job.recipe.batch_size, steps, **job.run.shard)
    options = {"pin_memory": torch.cuda.is_available(), **loading(job.recipe.workers)}
    return DataLoader(job.train, batch_sampler=plan, collate_fn=collate, **options)


def noise(job: Detection) -> Batch:
    """Make a random micro-batch of the training shape, with an object in each image."""
    side = job.recipe.short_sides[0]
    box = np.array([[0, 0, side / 2, side / 2]], dtype=np.float32)
    polygon = np.array([0, 0, side / 2, 0, side / 2, side / 2], dtype=np.float64)
    target = Target(box, np.zeros(1, dtype=np.int64), [[polygon]])
    images = job.recipe.micro_batch(job.run.accelerator.num_processes)
    pixels = torch.randint(0, 256, (images * 3 * side * side,), dtype=torch.uint8)
    return Batch(pixels, [(side, side)] * images, [target] * images)


if __name__ == "__main__":
    main()

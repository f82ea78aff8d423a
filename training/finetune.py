"""Fine-tune a timm model as a classifier; ``accelerate launch`` runs it on several GPUs."""

import training  # noqa: F401  (first: it tells OpenMP how to wait, before torch is loaded)

# isort: split
from pathlib import Path

import accelerate
import timm
import torch
import tyro
from timm import optim, scheduler

from slotcon_hub.models.filled import create_filled
from slotcon_hub.models.loading import name_for_timm
from slotcon_hub.models.saving import save_classifier
from training.data.tolerant import load_tolerant
from training.engine.errors import RunError, explain_lost_workers, one_line_errors
from training.engine.outputs import unwritable
from training.evaluation.features import open_parts


def main(
    data: str, output: Path, model: str = "slotcon_nano", scratch: bool = False, epochs: int = 10,
    batch_size: int = 64, lr: float = 1e-3, layer_decay: float = 0.75, workers: int = 4,
    share: float = 1.0, image_column: str = "image", label_column: str = "label",
) -> None:  # fmt: skip
    """Fine-tune a timm model as a classifier of images, and save it as timm does.

    Args:
        data: folder with train/CLASS/*.jpg and val/CLASS/*.jpg or with Parquet files, or hf:<name>.
        output: folder to create for the result.
        model: any name in timm, or the folder of a run.
        scratch: start from random weights, for comparison.
        epochs: passes over the images of train.
        batch_size: images per process and step.
        lr: peak learning rate of AdamW.
        layer_decay: ratio of a layer's learning rate to that of the next layer.
        workers: data-loading processes per process.
        share: fraction of each class's images to train on; 0.01 for one in a hundred.
        image_column: column of a table with the images.
        label_column: column of a table with the labels.
    """
    accelerator = accelerate.Accelerator()
    accelerate.utils.set_seed(0)
    try:
        if problem := unwritable(output, "--output", new=True):
            raise ValueError(problem)
        train, val = open_parts(data, "train", "validation", image_column, label_column)
        both = (load_tolerant(d, batch_size, workers, shuffle=d is not val) for d in (train.draw(share), val))
        net = create_filled(name_for_timm(model), not scratch)[0]
        net.reset_classifier(len(train.classes))  # only now: the weights must fill the model that is created
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
    train.transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net), is_training=True)
    val.prepare(net)
    optimizer = optim.create_optimizer_v2(net, "adamw", lr, weight_decay=0.05, layer_decay=layer_decay)
    wrapped, optimizer, train_loader, val_loader = accelerator.prepare(net, optimizer, *both)
    schedule = scheduler.CosineLRScheduler(optimizer, epochs * len(train_loader), warmup_t=20, t_in_epochs=False)
    for epoch in range(epochs):
        wrapped.train()
        for step, (i, x, _) in enumerate(accelerate.utils.tqdm(train_loader), start=epoch * len(train_loader)):
            schedule.step_update(step)  # torch's schedulers ignore the layers' lr_scale
            accelerator.backward(torch.nn.functional.cross_entropy(wrapped(x), train.labels.to(x.device)[i]))
            optimizer.step()
            optimizer.zero_grad()
        wrapped.eval()
        with torch.no_grad():
            hits = ((wrapped(x).argmax(1) == val.labels.to(x.device)[i], read) for i, x, read in val_loader)
            right, read = torch.cat([accelerator.gather_for_metrics(torch.stack(two, 1)) for two in hits]).T
        accelerator.print(f"epoch {epoch + 1}: accuracy {right[read].float().mean():.3f} of {read.sum()} images")
    if accelerator.is_main_process:
        print(f"\nLoad it by\n{save_classifier(net, output, train.classes)}")


if __name__ == "__main__":
    with one_line_errors(RunError, OSError, interrupted="interrupted"), explain_lost_workers("start again"):
        tyro.cli(main)

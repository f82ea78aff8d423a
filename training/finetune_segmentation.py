"""Fine-tune a timm backbone with a small segmentation head; ``accelerate launch`` runs it on several GPUs."""

import training  # noqa: F401  (first: it tells OpenMP how to wait, before torch is loaded)

# isort: split
from pathlib import Path

import accelerate
import tyro
from torch import optim
from torchvision.transforms import v2

from training.data.masks import LabeledImages
from training.data.tolerant import Tolerant, load_tolerant
from training.engine.errors import RunError, explain_lost_workers, one_line_errors
from training.engine.outputs import unwritable
from training.evaluation import segmentation
from training.transfer.segmenter import Segmenter
from training.transfer.semantic.model import pixel_loss


def main(
    train: Path, val: Path, classes: int, output: Path, model: str = "slotcon_nano", scratch: bool = False,
    epochs: int = 20, batch_size: int = 16, lr: float = 1e-3, workers: int = 4,
) -> None:  # fmt: skip
    """Fine-tune a timm backbone and a small segmentation head on TRAIN, and evaluate on VAL.

    Both have images/ and masks/; a mask is a PNG file with the image's name, with labels below CLASSES, or 255 for
    unlabelled.

    Args:
        train: folder with images/ and masks/ for training.
        val: folder with images/ and masks/ for evaluation.
        classes: number of classes.
        output: folder to create for the result.
        model: any name in timm, or the folder of a run.
        scratch: start from random weights, for comparison.
        epochs: passes over the images of train.
        batch_size: images per process and step.
        lr: learning rate of AdamW.
        workers: data-loading processes per process.
    """
    accelerator = accelerate.Accelerator()
    accelerate.utils.set_seed(0)
    try:
        if problem := unwritable(output, "--output", new=True):
            raise ValueError(problem)
        known = {label: label for label in range(classes)}
        parts = [LabeledImages(part / "images", part / "masks", labels=known) for part in (train, val)]
        for part in parts:
            part.check(quiet=not accelerator.is_main_process)
        net = Segmenter(model, classes, pretrained=not scratch)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
    parts[0].transform = v2.RandomResizedCrop(net.pretrained_cfg["input_size"][1:], scale=(0.25, 1))
    normalize = v2.Normalize(net.pretrained_cfg["mean"], net.pretrained_cfg["std"])
    loader = load_tolerant(parts[0], batch_size, workers, shuffle=True)
    wrapped, optimizer, loader = accelerator.prepare(net, optim.AdamW(net.parameters(), lr), loader)
    for _ in range(epochs):
        for x, y, _ in accelerate.utils.tqdm(loader):
            scores = wrapped(normalize(x / 255))
            accelerator.backward(pixel_loss(scores, y, align_corners=False, average="labelled"))
            optimizer.step()
            optimizer.zero_grad()
    found = segmentation.evaluate(net.eval(), Tolerant(parts[1]), classes, classes, match=range(classes))
    accelerator.print(f"held-out mIoU {found.miou:.3f}, pixel accuracy {found.pixel_accuracy:.3f}")
    accelerator.save_model(net, output)
    place = Path(model).resolve() if Path(model).is_dir() else model
    lines = "from safetensors.torch import load_model\nfrom training.transfer.segmenter import Segmenter\nnet = "
    lines += f'Segmenter("{place}", {classes}).eval()\nload_model(net, "{output}/model.safetensors")'
    accelerator.print(f"\nLoad it by\n{lines}")


if __name__ == "__main__":
    with one_line_errors(RunError, OSError, interrupted="interrupted"), explain_lost_workers("start again"):
        tyro.cli(main)

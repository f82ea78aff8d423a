"""A linear classifier on frozen features: ``python -m training.evaluation.linear --models NAME --data DIR``."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from training.evaluation import command
from training.evaluation.features import Features, Labeled, extract
from training.evaluation.probes import Probe, run

__all__ = ["LinearProbe", "linear"]


@dataclass(frozen=True)
class LinearProbe(Probe):
    """The linear protocol of MoCo v3 for ResNets: SGD with momentum 0.9, no decay, cosine schedule."""

    epochs: int = 90
    """Passes over the training features."""
    base_lr: float = 0.1
    """Learning rate of a batch of 256; the one used is base_lr * train_batch_size / 256."""
    train_batch_size: int = 1024
    """Features in a step of the classifier."""
    augment: bool = False
    """Extract new features of random resized crops and flips in every epoch, as the protocol has it; without it the
    features of the centre crops are extracted once, which costs one epoch in place of all."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        super().__post_init__()
        command.check_positive(self, "epochs", "train_batch_size")


def linear(
    features: Callable[[int], Features],
    test: Features,
    *,
    epochs: int = 90,
    base_lr: float = 0.1,
    batch_size: int = 1024,
    quiet: bool = False,
) -> float:
    """Train a linear classifier, and measure it.

    Args:
        features: epoch to training features, in the same order of images.
        test: what is classified.
        epochs: passes over the training features.
        base_lr: learning rate of a batch of 256.
        batch_size: larger than the data set means all of it.
        quiet: show no progress bar.

    Returns:
        Top-1 accuracy in [0, 1].
    """
    generator = torch.Generator().manual_seed(0)
    train = features(0)
    classifier = nn.Linear(train.values.shape[1], int(train.labels.max()) + 1)
    nn.init.normal_(classifier.weight, std=0.01, generator=generator)
    nn.init.zeros_(classifier.bias)
    batch_size = min(batch_size, len(train.labels))
    lr = base_lr * batch_size / 256
    optimizer = torch.optim.SGD(classifier.parameters(), lr, momentum=0.9)
    for epoch in tqdm(range(epochs), "classifier", leave=False, disable=quiet):
        train = features(epoch) if epoch else train
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for rows in torch.randperm(len(train.labels), generator=generator).split(batch_size):
            loss = F.cross_entropy(classifier(train.values[rows]), train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.inference_mode():
        return float((classifier(test.values).argmax(1) == test.labels).float().mean())


def measure(
    model: Any, train: Labeled, test: Labeled, accelerator: Accelerator, probe: LinearProbe
) -> dict[str, float]:
    """Extract features and train the classifier on them, alike on every process."""

    def features(part: Labeled, epoch: int | None) -> Features:
        return extract(model, part, accelerator, epoch=epoch, batch_size=probe.batch_size, workers=probe.workers)

    once = None if probe.augment else features(train, None)
    accuracy = linear(
        lambda epoch: once or features(train, epoch),
        features(test, None),
        epochs=probe.epochs,
        base_lr=probe.base_lr,
        batch_size=probe.train_batch_size,
        quiet=not accelerator.is_main_process,
    )
    return {"linear": accuracy}


def protocol(probe: LinearProbe) -> dict[str, Any]:
    """How is measured."""
    return {
        "optimizer": "SGD, momentum 0.9, no weight decay",
        "learning_rate": f"{probe.base_lr} x batch / 256",
        "schedule": "cosine to 0, constant in an epoch",
        "initialization": "weights N(0, 0.01), biases 0",
        "training_images": "random resized crops and flips, new in each epoch" if probe.augment else "centre crops",
    }


if __name__ == "__main__":
    run("linear", "Compare frozen models by a linear classifier on their features.", LinearProbe, measure, protocol)

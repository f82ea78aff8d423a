"""A linear classifier on frozen features: ``python -m training.evaluation.linear --models NAME --data DIR``."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from training.evaluation import command
from training.evaluation.features import Features, Labeled, extract
from training.evaluation.probes import Probe, run

__all__ = ["LinearProbe", "linear"]


@dataclass(frozen=True)
class LinearProbe(Probe):
    """MoCo v3's linear protocol for ResNets: SGD with momentum 0.9, no weight decay, cosine schedule."""

    epochs: int = 90
    """Training epochs of the classifier."""
    base_lr: float = 0.1
    """Learning rate for a batch of 256; scaled by train_batch_size / 256."""
    train_batch_size: int = 1024
    """Batch size of the classifier."""
    augment: bool = False
    """Extract features of new random resized crops and flips in every epoch, as in the protocol; otherwise features
    of centre crops are extracted once, which is much faster."""

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        command.check_positive(self, "epochs", "train_batch_size")


def linear(
    features: Features | Callable[[int], Features],
    test: Features,
    accelerator: Accelerator,
    *,
    epochs: int = 90,
    base_lr: float = 0.1,
    batch_size: int = 1024,
) -> float:
    """Train a linear classifier on the main process's device, and measure it; a collective call.

    Args:
        features: training features; or a collective function from epoch to features, always in the same order.
        test: test features.
        accelerator: determines device and rank.
        epochs: over the training features.
        base_lr: learning rate for a batch of 256.
        batch_size: at most the size of the data set is used.

    Returns:
        Top-1 accuracy in [0, 1], the same on all processes.
    """
    main = accelerator.is_main_process
    train = features if isinstance(features, Features) else features(0)
    batch_size = min(batch_size, len(train.labels))
    classifier = _Classifier(train, base_lr * batch_size / 256, accelerator.device)
    for epoch in tqdm(range(epochs), "classifier", leave=False, disable=not main):
        if epoch and not isinstance(features, Features):
            classifier.forget()
            del train  # frees memory for the next epoch's features
            train = features(epoch)
        if main:
            classifier.train(train, batch_size, (1 + math.cos(math.pi * epoch / epochs)) / 2)
        accelerator.wait_for_everyone()  # in each epoch: no collective timeout in a long training
    found = classifier.accuracy(test) if main else torch.zeros((), device=accelerator.device)
    return float(accelerator.reduce(found, "sum"))


class _Classifier:
    """A linear layer on a device, and its optimiser."""

    def __init__(self, train: Features, lr: float, device: torch.device) -> None:
        """Initialise for the channels and classes of ``train``."""
        self.generator = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(train.directions.shape[1], int(train.labels.max()) + 1)
        nn.init.normal_(self.layer.weight, std=0.01, generator=self.generator)
        nn.init.zeros_(self.layer.bias)
        self.layer.to(device)
        self.lr, self.device = lr, device
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr, momentum=0.9)
        self._kept: tuple[Features, Features] | None = None

    def train(self, train: Features, batch_size: int, factor: float) -> None:
        """Train for an epoch at ``factor`` times the learning rate."""
        if self._kept is None or self._kept[0] is not train:  # unchanged features are moved to the device once
            self._kept = None
            self._kept = train, train.to(self.device)
        here = self._kept[1]
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        order = torch.randperm(len(here.labels), generator=self.generator).to(self.device)
        for rows in order.split(batch_size):
            loss = F.cross_entropy(self.layer(here.values(rows)), here.labels[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def forget(self) -> None:
        """Free the features on the device."""
        self._kept = None

    @torch.inference_mode()
    def accuracy(self, test: Features) -> Tensor:
        """Top-1 accuracy in [0, 1], on the device."""
        here = test.to(self.device)
        parts = torch.arange(len(here.labels), device=self.device).split(4096)
        found = torch.cat([self.layer(here.values(rows)).argmax(1) for rows in parts])
        return (found == here.labels).float().mean()


def measure(
    model: Any, train: Labeled, test: Labeled, accelerator: Accelerator, probe: LinearProbe
) -> dict[str, float]:
    """Extract features, train the classifier and return its accuracy."""

    def features(part: Labeled, epoch: int | None) -> Features:
        return extract(model, part, accelerator, epoch=epoch, batch_size=probe.batch_size, workers=probe.workers)

    accuracy = linear(
        (lambda epoch: features(train, epoch)) if probe.augment else features(train, None),
        features(test, None),
        accelerator,
        epochs=probe.epochs,
        base_lr=probe.base_lr,
        batch_size=probe.train_batch_size,
    )
    return {"linear": accuracy}


def protocol(probe: LinearProbe) -> dict[str, Any]:
    """Describe the protocol for the JSON file."""
    return {
        "optimizer": "SGD, momentum 0.9, no weight decay",
        "learning_rate": f"{probe.base_lr} x batch / 256",
        "schedule": "cosine to 0, constant within an epoch",
        "initialization": "weights N(0, 0.01), biases 0",
        "training_images": "random resized crops and flips, new in each epoch" if probe.augment else "centre crops",
    }


if __name__ == "__main__":
    run("linear", "Compare frozen models by a linear classifier on their features.", LinearProbe, measure, protocol)

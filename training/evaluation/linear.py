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
    features: Features | Callable[[int], Features],
    test: Features,
    accelerator: Accelerator,
    *,
    epochs: int = 90,
    base_lr: float = 0.1,
    batch_size: int = 1024,
) -> float:
    """Train a linear classifier on the device of the main process, and measure it; all processes call it together.

    Args:
        features: of the training images; or epoch to those, in the same order of images, which all processes call.
        test: what is classified.
        accelerator: says the device, and which of the processes this is.
        epochs: passes over the training features.
        base_lr: learning rate of a batch of 256.
        batch_size: larger than the data set means all of it.

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
            del train  # its memory is for the next
            train = features(epoch)
        if main:
            classifier.train(train, batch_size, (1 + math.cos(math.pi * epoch / epochs)) / 2)
        accelerator.wait_for_everyone()  # in each epoch, or the others would give up waiting for a long training
    found = classifier.accuracy(test) if main else torch.zeros((), device=accelerator.device)
    return float(accelerator.reduce(found, "sum"))


class _Classifier:
    """A linear layer on a device, and its optimiser."""

    def __init__(self, train: Features, lr: float, device: torch.device) -> None:
        """Initialise for the width and the classes of features."""
        self.generator = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(train.values.shape[1], int(train.labels.max()) + 1)
        nn.init.normal_(self.layer.weight, std=0.01, generator=self.generator)
        nn.init.zeros_(self.layer.bias)
        self.layer.to(device)
        self.lr, self.device = lr, device
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr, momentum=0.9)
        self._kept: tuple[Features, Tensor, Tensor] | None = None

    def train(self, train: Features, batch_size: int, factor: float) -> None:
        """Take the steps of an epoch, with a fraction of the learning rate."""
        if self._kept is None or self._kept[0] is not train:  # the same in all epochs are sent to the device once
            self._kept = None
            self._kept = train, train.values.to(self.device), train.labels.to(self.device)
        _, values, labels = self._kept
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        order = torch.randperm(len(labels), generator=self.generator).to(self.device)
        for rows in order.split(batch_size):
            loss = F.cross_entropy(self.layer(values[rows]), labels[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def forget(self) -> None:
        """Free the memory of the features that are on the device."""
        self._kept = None

    @torch.inference_mode()
    def accuracy(self, test: Features) -> Tensor:
        """Top-1 accuracy in [0, 1], on the device."""
        found = self.layer(test.values.to(self.device)).argmax(1)
        return (found == test.labels.to(self.device)).float().mean()


def measure(
    model: Any, train: Labeled, test: Labeled, accelerator: Accelerator, probe: LinearProbe
) -> dict[str, float]:
    """Extract features and train the classifier on them."""

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

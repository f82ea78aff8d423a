"""Nearest neighbours on frozen features: ``python -m training.evaluation.knn --models slotcon_nano --data DIR``."""

from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from training.evaluation.features import Features, Labeled, extract
from training.evaluation.probes import Probe, run

__all__ = ["KS", "TEMPERATURE", "knn"]

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07


def knn(train: Features, test: Features, *, ks: tuple[int, ...] = KS, chunk: int = 256) -> dict[int, float]:
    """Classify by the votes of the k most similar training pictures, weighted by exp(cosine / 0.07).

    Of classes with equal votes the first is taken. A training set of fewer than k pictures votes as a whole.

    Args:
        train: the bank that votes.
        test: what is classified.
        ks: numbers of neighbours.
        chunk: test pictures compared at a time; bounds the memory, moves no result.

    Returns:
        Top-1 accuracy in [0, 1] for each k.
    """
    bank, queries = F.normalize(train.values), F.normalize(test.values)
    classes = int(train.labels.max()) + 1
    right = dict.fromkeys(ks, 0)
    for rows, labels in zip(queries.split(chunk), test.labels.split(chunk), strict=True):
        cosine, nearest = (rows @ bank.T).topk(min(max(ks), len(bank)))
        votes = (cosine / TEMPERATURE).exp()
        for k in ks:
            right[k] += int((_vote(votes[:, :k], train.labels[nearest[:, :k]], classes) == labels).sum())
    return {k: count / len(test.labels) for k, count in right.items()}


def _vote(votes: Tensor, labels: Tensor, classes: int) -> Tensor:
    return torch.zeros(len(votes), classes).scatter_add_(1, labels, votes).argmax(1)


def measure(model: Any, train: Labeled, test: Labeled, accelerator: Accelerator, probe: Probe) -> dict[str, float]:
    """Extract the features of both parts and classify."""
    both = (
        extract(model, part, accelerator, batch_size=probe.batch_size, workers=probe.workers)
        for part in (train, test)
    )
    return {f"k = {k}": accuracy for k, accuracy in knn(*both).items()}


def protocol(probe: Probe) -> dict[str, Any]:
    """How is measured."""
    return {"k": KS, "votes": f"exp(cosine / {TEMPERATURE}) of pooled features"}


if __name__ == "__main__":
    run("knn", "Compare frozen models by the nearest neighbours of their features.", Probe, measure, protocol)

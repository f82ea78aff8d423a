"""Nearest neighbours on frozen features: ``python -m training.evaluation.knn --models slotcon_nano --data DIR``."""

from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from training.evaluation.features import Features, Labeled, extract
from training.evaluation.neighbors import nearest
from training.evaluation.probes import Probe, run

__all__ = ["KS", "TEMPERATURE", "knn"]

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07


@torch.inference_mode()
def knn(
    train: Features, test: Features, accelerator: Accelerator, *, ks: tuple[int, ...] = KS, chunk: int = 1024
) -> dict[int, float]:
    """Classify by votes of the k most similar training images, weighted by exp(cosine similarity / 0.07).

    Ties go to the lower class. Each process classifies its shard; counts are reduced over processes.

    Args:
        train: training features.
        test: test features.
        accelerator: determines device and shard.
        ks: numbers of neighbours, each limited to the size of the training set.
        chunk: maximum number of test images per matrix product; limits memory, does not change results.

    Returns:
        Top-1 accuracy in [0, 1] for each k.
    """
    bank, queries = (part.to(accelerator.device) for part in (train, test))
    classes = int(train.labels.max()) + 1
    right = torch.zeros(len(ks), dtype=torch.long, device=accelerator.device)
    chunks = list(zip(queries.directions.split(chunk), queries.labels.split(chunk), strict=True))
    for directions, labels in chunks[accelerator.process_index :: accelerator.num_processes]:
        ((cosine, neighbors),) = nearest(F.normalize(directions.float()), bank.directions, max(ks))
        votes = (cosine / TEMPERATURE).exp()
        found = [_vote(votes[:, :k], bank.labels[neighbors[:, :k]], classes) for k in ks]
        right += torch.stack([(classified == labels).sum() for classified in found])
    counts = accelerator.reduce(right, "sum").tolist()
    return {k: count / len(test.labels) for k, count in zip(ks, counts, strict=True)}


def _vote(votes: Tensor, labels: Tensor, classes: int) -> Tensor:
    return votes.new_zeros(len(votes), classes).scatter_add_(1, labels, votes).argmax(1)


def measure(model: Any, train: Labeled, test: Labeled, accelerator: Accelerator, probe: Probe) -> dict[str, float]:
    """Extract the features of both splits, and return the accuracy for each k up to the number of images."""
    sizes = {"batch_size": probe.batch_size, "workers": probe.workers}
    bank, queries = (extract(model, part, accelerator, **sizes) for part in (train, test))
    ks = tuple(k for k in KS if k <= len(bank.labels)) or (len(bank.labels),)
    return {f"k = {k}": accuracy for k, accuracy in knn(bank, queries, accelerator, ks=ks).items()}


def protocol(probe: Probe) -> dict[str, Any]:
    """Describe the protocol for the JSON file."""
    return {"k": KS, "votes": f"exp(cosine / {TEMPERATURE}) of pooled features"}


if __name__ == "__main__":
    run("knn", "Compare frozen models by the nearest neighbours of their features.", Probe, measure, protocol)

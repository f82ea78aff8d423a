"""Clusters of frozen cells, matched with classes: ``python -m training.evaluation.overclustering``.

Dimensions: B images, C channels, h x w cells, K clusters.
"""

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from slotcon_hub.models.maps import MapModel
from training.evaluation import command
from training.evaluation.cells import collect
from training.evaluation.dense import Dense, Parts, count, run
from training.evaluation.dense_report import as_numbers
from training.evaluation.kmeans import affinities, kmeans
from training.evaluation.metrics import merge_majority, score

__all__ = ["Overclustering", "average", "cluster_scores"]

DESCRIPTION = (
    "Segment images by k-means clusters of the cells of frozen maps, matched with the classes of the masks."
)


@dataclass(frozen=True, kw_only=True)
class Overclustering(Dense):
    """k-means on cells."""

    clusters: int = 500
    """Of k-means, where each cluster takes the class that most of its pixels have. Another column has as many
    clusters as classes, matched one to one (Hungarian)."""
    seeds: int = 5
    """Runs of k-means, from --seed on, of which mean and deviation are reported."""
    iterations: int = 50
    """Of k-means, at most."""
    cells: int = 102_400
    """Cells of training images that are clustered at most, the same number of every image: they take 4 bytes, on
    every process, for each channel of the map and each class; without --classes that is 255 classes."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        super().__post_init__()
        command.check_positive(self, "clusters", "seeds", "iterations", "cells")


def cluster_scores(found: Tensor, centers: Sequence[Tensor]) -> list[Tensor]:
    """Affinities, B x K x h x w, of the cells of B x C x h x w maps, made of length 1, with each set of centres."""
    cells = F.normalize(found, dim=1).permute(0, 2, 3, 1)
    return [affinities(cells, some).permute(0, 3, 1, 2) for some in centers]


def average(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of the numbers of several seeds, and for mIoU the standard deviation of a sample; NaN of a single one.

    Args:
        runs: of :func:`training.evaluation.dense_report.as_numbers`.
    """
    mious = [one["miou"] for one in runs]
    per_class = []
    for several in zip(*(one["per_class"] for one in runs), strict=True):
        ious = [one["iou"] for one in several if one["iou"] == one["iou"]]
        per_class.append({**several[0], "iou": statistics.fmean(ious) if ious else np.nan})
    return {
        "miou": statistics.fmean(mious),
        "miou_deviation": statistics.stdev(mious) if len(mious) > 1 else np.nan,
        "miou_of_seeds": mious,
        "pixel_accuracy": statistics.fmean(one["pixel_accuracy"] for one in runs),
        "per_class": per_class,
    }


def measure(
    model: MapModel, parts: Parts, accelerator: Accelerator, settings: Overclustering
) -> dict[str, dict[str, Any]]:
    """Cluster training cells, alike on every process, and segment by each set of clusters."""
    cells = collect(model, parts.train, parts.classes, accelerator, settings, "--cells", [settings.cells])
    points = F.normalize(cells.features, dim=1)
    classes = len(parts.names) if parts.names else int(cells.counts.any(0).nonzero().max()) + 1
    seeds = range(settings.seed, settings.seed + settings.seeds)
    sizes = [k for k in (classes, settings.clusters) for _ in seeds]
    centers = [
        kmeans(points, k, seed, settings.iterations) for k, seed in zip(sizes, [*seeds, *seeds], strict=True)
    ]
    scores = functools.partial(cluster_scores, centers=centers)
    counts = count(model, parts.test, accelerator, settings, scores, sizes, parts.classes)
    shown = counts[0].any(0).nonzero()[:, 0].tolist()
    names = parts.names or tuple(map(str, range(max([classes - 1, *shown]) + 1)))
    counts = [one[:, : len(names)] for one in counts]
    matched = [as_numbers(score(one), one, names) for one in counts[: len(seeds)]]
    merged = [merge_majority(one) for one in counts[len(seeds) :]]
    majority = [as_numbers(score(one, range(len(one))), one, names) for one in merged]
    return {
        f"Hungarian, K = {classes}": average(matched),
        f"many to one, K = {settings.clusters}": average(majority),
    }


def protocol(settings: Overclustering) -> dict[str, Any]:
    """How is measured."""
    return {
        "clusters": f"k-means (k-means++, at most {settings.iterations} iterations) of training cells of length 1",
        "seeds": list(range(settings.seed, settings.seed + settings.seeds)),
        "cells": settings.cells,
        "cells_drawn": "uniformly among those with a labelled pixel, as many of every image",
        "matching": "on the measured images: Hungarian, most matched pixels; many to one, most frequent class",
        "prediction": "nearest cluster of features resized bilinearly to the pixels (align_corners=False)",
        "deviation": "standard deviation of the sample of seeds",
    }


if __name__ == "__main__":
    run("overclustering", DESCRIPTION, Overclustering, measure, protocol)

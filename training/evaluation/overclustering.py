"""k-means clusters of frozen features, matched with classes: ``python -m training.evaluation.overclustering``.

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

DESCRIPTION = "Segment images by k-means clusters of frozen feature maps, matched with the classes of the masks."


@dataclass(frozen=True, kw_only=True)
class Overclustering(Dense):
    """Options of overclustering."""

    clusters: int = 500
    """K of k-means, each cluster assigned to its most frequent class. Another column has as many clusters as
    classes, matched one to one (Hungarian)."""
    seeds: int = 5
    """Number of k-means runs, with seeds from --seed on; mean and standard deviation are reported."""
    iterations: int = 50
    """Maximum number of k-means iterations."""
    cells: int = 102_400
    """Maximum number of training cells, equally many from each image; they need 4 x cells x (channels + classes)
    bytes per process; without --classes there are 255."""

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        command.check_positive(self, "clusters", "seeds", "iterations", "cells")


def cluster_scores(found: Tensor, centers: Sequence[Tensor]) -> list[Tensor]:
    """Compute the affinities, B x K x h x w, of L2-normalised B x C x h x w maps with each set of centres."""
    cells = F.normalize(found, dim=1).permute(0, 2, 3, 1)
    return [affinities(cells, some).permute(0, 3, 1, 2) for some in centers]


def average(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average results over seeds, with the sample standard deviation of the mIoU (NaN for one seed).

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
    """Cluster training cells, identically on every process, and segment by each set of clusters."""
    cells = collect(model, parts.train, parts.classes, accelerator, settings, "--cells", [settings.cells])
    points = F.normalize(cells.features, dim=1)
    classes = len(parts.names) if parts.names else cells.seen
    seeds = range(settings.seed, settings.seed + settings.seeds)
    sizes = [k for k in (classes, settings.clusters) for _ in seeds]
    centers = [
        kmeans(points, k, seed, settings.iterations) for k, seed in zip(sizes, [*seeds, *seeds], strict=True)
    ]
    scores = functools.partial(cluster_scores, centers=centers)
    counts = count(model, parts.test, accelerator, settings, scores, sizes, parts.classes)
    names = parts.shown(cells.seen, counts[0])
    counts = [one[:, : len(names)] for one in counts]
    matched = [as_numbers(score(one), one, names) for one in counts[: len(seeds)]]
    merged = [merge_majority(one) for one in counts[len(seeds) :]]
    majority = [as_numbers(score(one, range(len(one))), one, names) for one in merged]
    return {
        f"Hungarian, K = {classes}": average(matched),
        f"many to one, K = {settings.clusters}": average(majority),
    }


def protocol(settings: Overclustering) -> dict[str, Any]:
    """Describe the protocol for the JSON file."""
    return {
        "clusters": f"k-means++, at most {settings.iterations} iterations, on L2-normalised training cells",
        "seeds": list(range(settings.seed, settings.seed + settings.seeds)),
        "cells": settings.cells,
        "cells_drawn": "uniformly among cells with a labelled pixel, equally many from each image",
        "matching": "on the test images: Hungarian, most matched pixels; many to one, most frequent class",
        "prediction": "nearest cluster of features resized bilinearly to the pixels (align_corners=False)",
        "deviation": "sample standard deviation over seeds",
    }


if __name__ == "__main__":
    run("overclustering", DESCRIPTION, Overclustering, measure, protocol)

"""Object discovery by best Jaccard index of groups and objects: ``python -m training.evaluation.discovery``.

Dimensions: B images, K groups, n objects, S side of an image in pixels, h x w cells of a map.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.table import Column, Table
from torch import Tensor

from slotcon_hub.cli.table import shorten
from slotcon_hub.concepts.inference import load_prototypes
from slotcon_hub.concepts.segments import group_map
from slotcon_hub.models.loading import name_for_timm
from slotcon_hub.models.maps import MapModel, load_map
from training.data.objects import CocoObjects, Objects, VocObjects
from training.engine.words import show
from training.evaluation import command
from training.evaluation.cells import collect
from training.evaluation.comparison import Comparison, compare_maps
from training.evaluation.kmeans import kmeans
from training.evaluation.overclustering import cluster_scores

__all__ = ["Discovery", "best_jaccards", "main", "summarize"]


@dataclass(frozen=True, kw_only=True)
class Discovery(Comparison):
    """Options of object discovery."""

    objects: Path
    """JSON file in COCO's format, or VOC's folder SegmentationObject, with SegmentationClass beside it."""
    names: Path | None = None
    """Text file with image names of VOC, one per line, such as ImageSets/Segmentation/val.txt."""
    groups: Literal["prototypes", "clusters"] = "prototypes"
    """prototypes: group pixels by the most similar prototype of a prototype model. clusters: by k-means of the
    features of these images, for any model."""
    clusters: int = 256
    """K of k-means."""
    cells: int = 102_400
    """Maximum number of cells for k-means, equally many from each image."""
    size: int = 224
    """Resize the short side of images and objects to this many pixels, then crop the central square."""

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        command.check_positive(self, "clusters", "cells")


def best_jaccards(groups: Tensor, masks: Tensor, void: Tensor) -> list[float]:
    """Compute the best IoU of each object over the groups of its image.

    Args:
        groups: integers S x S.
        masks: bool n x S x S, the objects; each has a pixel outside the void.
        void: bool S x S: pixels to ignore.

    Returns:
        n IoUs in (0, 1].
    """
    groups, masks = groups[~void], masks[:, ~void]
    sizes = groups.bincount()
    found = []
    for mask in masks:
        intersection = groups[mask].bincount(minlength=len(sizes))
        union = sizes + mask.sum() - intersection
        found.append(float((intersection.double() / union).max()))
    return found


def summarize(found: Sequence[tuple[int, float]], names: Sequence[str]) -> dict[str, Any]:
    """Average the IoUs over objects, and over the classes that have objects.

    Args:
        found: class and best IoU of each object.
        names: of the classes.
    """
    of_class: list[list[float]] = [[] for _ in names]
    for label, iou in found:
        of_class[label].append(iou)
    means = [statistics.fmean(ious) if ious else float("nan") for ious in of_class]
    return {
        "objects": len(found),
        "by_object": statistics.fmean(iou for _, iou in found),
        "by_class": statistics.fmean(mean for mean, ious in zip(means, of_class, strict=True) if ious),
        "per_class": [
            {"name": name, "objects": len(ious), "jaccard": mean}
            for name, ious, mean in zip(names, of_class, means, strict=True)
        ],
    }


def _load_scores(name: str, size: int, *, pretrained: bool = True) -> MapModel:
    """Load a prototype model that returns similarity maps."""
    model: Any = load_prototypes(name)
    if not pretrained:
        model = timm.create_model(name_for_timm(name, "prototypes"), global_pool="").eval()
    return MapModel(model)


def _stack(samples: list[tuple[int, Objects]]) -> tuple[Tensor, list[tuple[int, Objects]]]:
    return torch.stack([sample.image for _, sample in samples]), samples


@torch.no_grad()
def _discover(
    model: MapModel,
    images: Any,
    accelerator: Accelerator,
    settings: Discovery,
    score: Callable[[Tensor], Tensor],
) -> list[tuple[int, float]]:
    """Return class and best IoU of all objects, gathered from all processes, in the order of the images."""
    found = []
    size = settings.size, settings.size
    batches = command.stream(images, _stack, accelerator, batch_size=settings.batch_size, workers=settings.workers)
    for batch, samples in batches:
        with accelerator.autocast():
            maps = model(batch)
        groups = group_map(score(maps), size)[0].cpu()
        for one, (number, sample) in zip(groups, samples, strict=True):
            ious = best_jaccards(one, sample.masks, sample.void)
            found.append((number, list(zip(sample.labels, ious, strict=True))))
    return [pair for _, pairs in sorted(gather_object(found)) for pair in pairs]


class _Blank:
    """Images with all-zero masks."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index].image
        return image, image.new_zeros(image.shape[1:])


def _measure(model: MapModel, images: Any, accelerator: Accelerator, settings: Discovery) -> dict[str, Any]:
    if settings.groups == "prototypes":
        groups, found = model.channels, _discover(model, images, accelerator, settings, lambda maps: maps)
    else:
        cells = collect(model, _Blank(images), 1, accelerator, settings, "--cells", [settings.cells])
        centers = kmeans(F.normalize(cells.features, dim=1), settings.clusters, settings.seed)
        groups = len(centers)
        found = _discover(model, images, accelerator, settings, lambda maps: cluster_scores(maps, [centers])[0])
    if not found:
        raise ValueError(
            f"{settings.objects} has no object in the central squares of the images: give images with objects"
        )
    names = images.classes or tuple(map(str, range(max(label for label, _ in found) + 1)))
    return {"groups": groups, **summarize(found, names)}


def _open(settings: Discovery) -> CocoObjects | VocObjects:
    if not settings.objects.is_dir():
        if settings.names:
            raise ValueError("--names is only for VOC's folders: leave it out, a JSON file lists its images")
        return CocoObjects(settings.data, settings.objects, settings.size)
    names = settings.names.read_text().split() if settings.names else None
    return VocObjects(settings.data, settings.objects, names, settings.size)


def main(settings: Discovery) -> None:
    """Run the command."""
    command.check_outputs(settings.output, None)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with accelerator.main_process_first():
        images = _open(settings)
    of_prototypes = settings.groups == "prototypes"
    compare_maps(
        settings,
        accelerator,
        images,
        _load_scores if of_prototypes else load_map,
        lambda model: _measure(model, images, accelerator, settings),
        lambda results, features: _report(settings, len(images), results, features),
        "prototypes" if of_prototypes else "backbone",
    )


def _report(settings: Discovery, images: int, results: dict[str, dict[str, Any]], features: dict[str, Any]) -> None:
    size = settings.size
    objects = next(iter(results.values()))["objects"]
    protocol = {
        "images": images,
        "pixels": f"short side {size} (bilinear; objects nearest), central {size} x {size}",
        "resolution_of_comparison": [size, size],
        "groups": "most similar prototype"
        if settings.groups == "prototypes"
        else f"k-means, K = {settings.clusters}, of L2-normalised cells of these images",
        "prediction": "argmax of similarities, resized bilinearly to the pixels (align_corners=False)",
        "jaccard": "of the best group of the image, without void pixels and crowds",
        "seed": settings.seed,
        "features": features,
    }
    command.write(settings.output, "discovery", settings, protocol=protocol, results=results)
    print(
        f"discovery on {settings.data}: {images:,} images, {objects:,} objects in them, at {size} x {size} pixels"
    )
    columns = ("stride", "groups", "by object", "by class")
    table = Table("best Jaccard, %", *(Column(title, justify="right") for title in columns))
    for title, found in results.items():
        numbers = f"{100 * found['by_object']:.2f}", f"{100 * found['by_class']:.2f}"
        stride = features[title.removesuffix(", random")]["stride"]
        table.add_row(shorten(title), f"{stride:g}", str(found["groups"]), *numbers)
    show(table)


if __name__ == "__main__":
    command.run("discovery", "Compare the groups that frozen models find with annotated objects.", Discovery, main)

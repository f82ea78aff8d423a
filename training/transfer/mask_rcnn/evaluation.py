"""COCO's average precision of boxes and masks, in percent."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask
from rich.table import Column, Table
from torch.utils.data import DataLoader, Dataset

from slotcon_hub.distributed import gather_objects, rank, shard_batches, world_size
from slotcon_hub.files import atomic_write
from slotcon_hub.models.backbone import eval_mode
from training.data.coco import CocoImages, Record
from training.engine.signals import loading
from training.engine.words import show
from training.transfer.mask_rcnn.examples import read_test_image
from training.transfer.mask_rcnn.model import MaskRCNN
from training.transfer.mask_rcnn.resize import resize, resized_size
from training.transfer.mask_rcnn.roi_heads import Detections

__all__ = ["as_results", "detect_all", "ground_truth", "measure", "print_tables", "write_results"]

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the first six numbers of COCO's evaluation
KINDS = {"boxes": "bbox", "masks": "segm"}


class _TestImages(Dataset[tuple[int, np.ndarray]]):
    """Pairs of an index and a resized image, uint8 H x W x 3."""

    def __init__(self, images: CocoImages, numbers: Sequence[int], short: int, longest: int) -> None:
        self.images, self.numbers, self.short, self.longest = images, numbers, short, longest

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        record = self.images[self.numbers[index]]
        size = resized_size(record.height, record.width, self.short, self.longest)
        return self.numbers[index], resize(read_test_image(record), size)


def detect_all(
    model: MaskRCNN, images: CocoImages, workers: int = 0, progress: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    """Detect objects in single images, divided among the processes; a collective call.

    Args:
        model: its training mode is restored afterwards.
        images: test images.
        workers: data-loader workers per process.
        progress: called with the number of finished images of this process.

    Returns:
        Results in COCO's format, in the order of the images; only on rank 0.
    """
    device = next(model.parameters()).device
    numbers = [n for part in shard_batches(len(images), 1, rank(), world_size()) for n in part]
    seen = _TestImages(images, numbers, model.config.test_side, model.config.longest_side)
    found: list[tuple[int, list[dict[str, Any]]]] = []
    with eval_mode(model):
        for number, pixels in DataLoader(seen, batch_size=None, collate_fn=_only, **loading(workers)):
            record = images[number]
            image = torch.from_numpy(np.array(pixels)).to(device).permute(2, 0, 1)  # copied: must be writable
            (detections,) = model.detect([image], [(record.height, record.width)])
            found.append((number, as_results(record, detections, model.config.category_ids)))
            if progress:
                progress(len(found))
    gathered = sorted((one for part in gather_objects(found) for one in part), key=lambda one: one[0])
    return [result for _, results in gathered for result in results]


def _only(sample: Any) -> Any:
    """Keep NumPy arrays: tensors from workers hold file descriptors."""
    return sample


def as_results(record: Record, found: Detections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert detections, in pixels of the original image, to COCO's results: boxes x, y, w, h and RLE masks."""
    masks = found.bitmaps((record.height, record.width)).cpu().numpy().astype(np.uint8)
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0))) if len(masks) else []
    boxes = found.boxes.cpu().clone()
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes.tolist(), found.scores.tolist(), found.labels.tolist(), encoded, strict=True)
    return [
        {
            "image_id": record.id,
            "category_id": category_ids[label],
            "bbox": box,
            "score": score,
            "segmentation": {"size": list(mask["size"]), "counts": _text(mask["counts"])},
        }
        for box, score, label, mask in rows
    ]


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def ground_truth(images: CocoImages) -> dict[str, Any]:
    """Convert the data set to COCO's format for evaluators: annotation ids from 1, each with its area."""
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [
        {"id": id, "name": name} for id, name in zip(images.category_ids, images.classes, strict=True)
    ]
    for record in images:
        content["images"].append({"id": record.id, "height": record.height, "width": record.width})
        for one in record.instances:
            left, top, right, bottom = one.box
            shape = [p.tolist() for p in one.polygons]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,  # some evaluators treat id 0 as no match
                    "image_id": record.id,
                    "category_id": images.category_ids[one.label],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": one.area,
                    "iscrowd": int(one.crowd),
                    "segmentation": one.rle | {"counts": _text(one.rle["counts"])} if one.rle else shape,
                }
            )
    return content


def measure(images: CocoImages, results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Compute average precisions in percent, NaN without ground truth.

    Args:
        images: the ground truth.
        results: of these images, in COCO's format.

    Returns:
        ``boxes`` and ``masks``, each with ``AP, AP50, AP75, APs, APm, APl``; ``per_class`` with the name, the
        number of objects without crowds, and AP of ``boxes`` and ``masks``.
    """
    results, truth = list(results), ground_truth(images)
    numbers: dict[str, Any] = {}
    per_class = {}
    for kind, iou_type in KINDS.items():
        numbers[kind], per_class[kind] = _average_precision(truth, results, iou_type)
    objects = {id: 0 for id in images.category_ids}
    for one in truth["annotations"]:
        objects[one["category_id"]] += not one["iscrowd"]
    rows = zip(images.classes, objects.values(), per_class["boxes"], per_class["masks"], strict=True)
    numbers["per_class"] = [dict(zip(("name", "objects", "boxes", "masks"), row, strict=True)) for row in rows]
    return numbers


def _average_precision(
    truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str
) -> tuple[dict[str, float], list[float]]:
    # With both, the box would determine the size class of a mask: each evaluation only gets its own kind.
    other = "bbox" if iou_type == "segm" else "segmentation"
    own = [{key: value for key, value in one.items() if key != other} for one in results]
    if not own:
        found = {one["category_id"] for one in truth["annotations"] if not one["iscrowd"]}
        nothing = [0.0 if category["id"] in found else float("nan") for category in truth["categories"]]
        return dict.fromkeys(NAMES, 0.0), nothing
    reference = COCO(truth, use_deepcopy=True)
    evaluation = COCOeval_faster(reference, reference.loadRes(own), iouType=iou_type)
    evaluation.run()
    numbers = [100 * value if value > -1 else float("nan") for value in map(float, evaluation.stats[:6])]
    precision = evaluation.eval["precision"][
        :, :, :, 0, -1
    ]  # overlaps, recalls, classes; all sizes, 100 detections
    classes = [
        100 * float(one[one > -1].mean()) if (one > -1).any() else float("nan")
        for one in precision.transpose(2, 0, 1)
    ]
    return dict(zip(NAMES, numbers, strict=True)), classes


def print_tables(numbers: dict[str, Any]) -> None:
    """Print the results of :func:`measure`."""
    whole = Table("%", *(Column(name, justify="right") for name in NAMES))
    for kind in KINDS:
        whole.add_row(kind, *(f"{numbers[kind][name]:.2f}" for name in NAMES))
    show(whole)
    table = Table(
        "class", *(Column(name, justify="right") for name in ("objects", "AP of boxes, %", "of masks, %"))
    )
    for one in numbers["per_class"]:
        table.add_row(one["name"], str(one["objects"]), *(f"{one[kind]:.2f}" for kind in KINDS))
    show(table)


def write_results(path: Path, results: list[dict[str, Any]]) -> None:
    """Write results as JSON in COCO's format, atomically."""
    with atomic_write(path) as new:
        new.write_text(json.dumps(results))

"""A file of Detectron2's numbers: its weights and images made anew, and the same numbers computed by ours."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmseg_golden import filled
from torch import Tensor

from training.transfer.mask_rcnn.model import MaskRCNN
from training.transfer.mask_rcnn.names import config_of, detectron2_name, from_detectron2, to_detectron2
from training.transfer.mask_rcnn.resize import resize, resized_size
from training.transfer.mask_rcnn.rpn import SIZES, cell_anchors
from training.transfer.mask_rcnn.target import Target

LONGEST = 1333


def compare(case: Path) -> dict[str, float]:
    """The largest relative difference of each group of expected values of a file, by the path of its keys."""
    content = json.loads(case.read_text())
    expected = content["expected"]
    found = measure(content["spec"], content["shapes"], expected)
    groups: dict[str, float] = {}
    for path, theirs, ours in _leaves((), expected, found):
        group = ".".join([key for key in path if isinstance(key, str)][:2])
        difference = abs(ours - theirs) / abs(theirs) if theirs else abs(ours)
        groups[group] = max(groups.get(group, 0.0), difference if math.isfinite(difference) else math.inf)
    return groups


def _leaves(path: tuple, theirs: Any, ours: Any) -> Iterator[tuple[tuple, float, float]]:
    """Pairs of numbers; where one side has another shape, a pair that differs infinitely."""
    if isinstance(theirs, dict):
        for key, value in theirs.items():
            if isinstance(value, str):
                continue  # how something was made
            yield from _leaves((*path, key), value, ours.get(key) if isinstance(ours, dict) else None)
    elif isinstance(theirs, list):
        if not isinstance(ours, list) or len(ours) != len(theirs):
            yield path, 1.0, math.inf
        else:
            for n, pair in enumerate(zip(theirs, ours, strict=True)):
                yield from _leaves((*path, n), *pair)
    else:
        yield path, float(theirs), math.inf if ours is None else float(ours)


def measure(spec: dict[str, Any], shapes: dict[str, list[int]], expected: dict[str, Any]) -> dict[str, Any]:
    """What ours has in the place of the expected values."""
    weights = {name: filled(name, shape) for name, shape in shapes.items()}
    model = MaskRCNN(config_of(shapes)).double()
    model.load_state_dict(from_detectron2(weights, list(model.state_dict()), model.config.box_convs))
    back = to_detectron2(model.state_dict(), model.config.box_convs)["model"]
    same = sum(name in back and np.array_equal(back[name], value) for name, value in weights.items())
    images = [
        torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(100 * spec["seed"] + n)).double()
        for n, size in enumerate(spec["sizes"])
    ]
    found = {"num_tensors": same, "resize": resized(expected.get("resize", {}))}
    found["anchors_first_three_of_each_level"] = [cell_anchors(size)[:3].tolist() for size in SIZES]
    found["eval"] = detected(model.eval(), images, spec["original"], expected.get("eval", []))
    found["train"] = trained(model.train(), images, [target(one) for one in spec["polygons"]])
    return found


def target(objects: list) -> Target:
    """Polygons with classes to what the losses take; a box is the smallest around its polygons."""
    masks = [[np.asarray(polygon, dtype=np.float64) for polygon in polygons] for polygons, _ in objects]
    points = [np.concatenate(polygons).reshape(-1, 2) for polygons in masks]
    boxes = np.array([[*p.min(0), *p.max(0)] for p in points], dtype=np.float32).reshape(-1, 4)
    return Target(boxes, np.array([label for _, label in objects], dtype=np.int64), masks)


def trained(model: MaskRCNN, images: list[Tensor], targets: list[Target]) -> dict[str, Any]:
    """One step without its update; sampling takes the first ones."""
    with mock.patch("torch.randperm", lambda n, device=None: torch.arange(n, device=device)):
        batch, sizes = model.batch(images)
        maps = model.backbone(batch)
        proposals, losses = model.rpn(maps, sizes, targets)
        losses |= model.roi_heads.losses(maps[:4], [boxes for boxes, _ in proposals], targets)
    sum(losses.values()).backward()
    gradients = {
        detectron2_name(name, model.config.box_convs): p.grad.norm().item()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return {
        "losses": {name: value.item() for name, value in losses.items()},
        "features": {f"p{n + 2}": one.norm().item() for n, one in enumerate(maps)},
        "padded": list(batch.shape),
        "grad_norms": gradients,
        "proposals": [
            {
                "count": len(boxes),
                "sum": boxes.sum().item(),
                "first": boxes[0].tolist(),
                "logit_first": logits[0].item(),
            }
            for boxes, logits in proposals
        ],
    }


def detected(model: MaskRCNN, images: list[Tensor], originals: list, expected: list) -> list[dict[str, Any]]:
    """Detections in the images of the original sizes; of long lists as many as the file has."""
    found = []
    sizes = [(height, width) for height, width in originals]
    for one, size, theirs in zip(model.detect(images, sizes), sizes, expected, strict=True):
        pixels = one.bitmaps(size).flatten(1).sum(1)
        lists = {"boxes": one.boxes, "scores": one.scores, "classes": one.labels, "mask_pixels": pixels}
        numbers = {
            "count": len(one.boxes),
            "score_sum": one.scores.sum().item(),
            "mask_pixels_sum": pixels.sum().item(),
        }
        found.append(numbers | {key: value[: len(theirs[key])].tolist() for key, value in lists.items()})
    return found


def resized(expected: dict[str, Any]) -> dict[str, Any]:
    """Sizes and pixels of the images that a file names."""
    found: dict[str, Any] = {}
    if rows := expected.get("rows"):
        found["rows"] = [[h, w, short, *resized_size(h, w, short, LONGEST)] for h, w, short, *_ in rows]
    if asked := expected.get("random_picture"):
        seed, shape = re.search(r"default_rng\((\d+)\)\.integers\(0, 256, \(([\d, ]+)\)", asked["rng"]).groups()
        shape = tuple(int(n) for n in shape.split(","))
        image = np.random.default_rng(int(seed)).integers(0, 256, shape, np.uint8)
        image = resize(image, resized_size(*image.shape[:2], asked["short"], LONGEST))
        found["random_picture"] = {
            "short": asked["short"],
            "shape": list(image.shape),
            "sum": int(image.sum()),
            "first": image[0, 0].tolist(),
        }
    return found

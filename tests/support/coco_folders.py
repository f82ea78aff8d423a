"""A made-up data set in COCO's format: discs and squares on noise, with all that such files may hold."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

CATEGORIES = {7: "square", 3: "disc"}  # with gaps, and in no order
COLORS = {3: (220, 60, 60), 7: (60, 90, 220)}


def outline(kind: int, x: float, y: float, r: float) -> list[float]:
    """Corners of an object around (x, y)."""
    angles = np.arange(16) * np.pi / 8 if kind == 3 else np.array([1, 3, 5, 7]) * np.pi / 4
    reach = r if kind == 3 else r * np.sqrt(2)
    return np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1).ravel().round(2).tolist()


def draw(
    rng: np.random.Generator, height: int, width: int, objects: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """An image, uint8 H x W x 3, and its annotations without ids: objects side by side."""
    image = rng.integers(90, 160, (height, width, 3), np.uint8)
    found = []
    for n in range(objects):
        kind = int(rng.choice(list(CATEGORIES)))
        r = rng.uniform(0.25, 0.4) * min(height, width / objects)
        x, y = width * (n + 0.5) / objects, rng.uniform(r + 1, height - r - 1)
        polygon = outline(kind, x, y, r)
        encoded = coco_mask.frPyObjects([polygon], height, width)[0]
        image[coco_mask.decode(encoded).astype(bool)] = COLORS[kind]
        box = [min(polygon[0::2]), min(polygon[1::2])]
        box += [max(polygon[0::2]) - box[0], max(polygon[1::2]) - box[1]]
        found.append({"category_id": kind, "bbox": box, "segmentation": [polygon], "iscrowd": 0})
    return image, found


def write_coco(root: Path, split: str, images: int, seed: int = 0, size: int = 64) -> dict[str, Any]:
    """Write images and a JSON file in COCO's layout; return what the file holds.

    The annotations count from 0 and have no area; every third image has its masks as run lengths, the second to
    last a crowd beside its objects, the last nothing.
    """
    rng = np.random.default_rng(seed)
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": id, "name": name} for id, name in CATEGORIES.items()]
    for n in range(images):
        height, width = (size, size * 3 // 2) if n % 2 else (size * 3 // 2, size)
        image, found = draw(rng, height, width, 0 if n == images - 1 else int(rng.integers(1, 3)))
        Image.fromarray(image).save(folder / f"{n}.png")
        content["images"].append({"id": 10 * n, "file_name": f"{n}.png", "height": height, "width": width})
        if n == images - 2:
            rle = {"size": [height, width], "counts": [0, height * 5, height * (width - 5)]}
            found.append({"category_id": 3, "bbox": [0, 0, 5, height], "segmentation": rle, "iscrowd": 1})
        for one in found:
            if n % 3 == 0 and not one["iscrowd"]:
                one["segmentation"] = uncompressed(one["segmentation"], height, width)
            content["annotations"].append({"id": len(content["annotations"]), "image_id": 10 * n, **one})
    write_json(root, split, content)
    return content


def write_json(root: Path, split: str, content: Any) -> Path:
    """Write the annotations of a split."""
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def uncompressed(polygons: list[list[float]], height: int, width: int) -> dict[str, Any]:
    """Run lengths of a mask, column after column, the first of zeros."""
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    runs = [(value, len(list(run))) for value, run in itertools.groupby(mask.ravel(order="F").tolist())]
    return {"size": [height, width], "counts": [0] * runs[0][0] + [length for _, length in runs]}

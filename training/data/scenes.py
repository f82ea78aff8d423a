"""Small synthetic landscapes with semantic masks: the data set of the demo.

A scene is a landscape (sky, perhaps mountains, one or two grounds) with objects on it, and simulated camera
degradations. Classes share colours on purpose: sky and sea are blue; grass, trees and flower beds green; sand and
house walls tan; roads and mountains grey. They differ in texture, shape and context.
"""

# H W pixels of the image, h w pixels of the bounding box of one object, 3 color channels, float32 in [0, 1]

from __future__ import annotations

import colorsys
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter
from tqdm import tqdm

from slotcon_hub.files import cache_folder

VERSION = 1  # part of the folder's name: increase it with every change of a pixel
SIZE = (128, 192)  # height and width
Array = np.ndarray
CLASSES: tuple[str, ...] = (
    "sky", "mountain", "sea", "grass", "sand", "road",
    "house", "tree", "flowers", "car", "boat", "cow",
)  # fmt: skip
_HEX = "8ecae6 6d6875 1d4e89 80b918 f4d35e adb5bd c14953 1b5e34 e879b9 5a3caa ffffff 7a4828"
PALETTE = np.array([*bytes.fromhex(_HEX)], dtype=np.uint8).reshape(-1, 3)  # for drawing masks

# Each tint is a few (hue, saturation, value) to choose from, before jitter.
TINTS = {
    "zenith": [(0.60, 0.62, 0.82), (0.57, 0.45, 0.90), (0.60, 0.12, 0.72), (0.68, 0.35, 0.62)],
    "horizon": [(0.56, 0.18, 0.96), (0.57, 0.10, 0.90), (0.08, 0.35, 0.97), (0.58, 0.06, 0.85)],
    "mountain": [(0.62, 0.25, 0.50), (0.08, 0.22, 0.48), (0.66, 0.10, 0.55), (0.30, 0.20, 0.42)],
    "sea": [(0.58, 0.62, 0.66), (0.52, 0.55, 0.60), (0.60, 0.45, 0.55), (0.56, 0.25, 0.62)],
    "grass": [(0.26, 0.58, 0.58), (0.22, 0.55, 0.64), (0.30, 0.50, 0.46), (0.17, 0.48, 0.66)],
    "sand": [(0.11, 0.38, 0.88), (0.10, 0.45, 0.78), (0.13, 0.25, 0.84)],
    "road": [(0.60, 0.06, 0.52), (0.09, 0.14, 0.62), (0.65, 0.10, 0.42), (0.08, 0.22, 0.70)],
    "house": [(0.03, 0.55, 0.66), (0.09, 0.38, 0.80), (0.06, 0.45, 0.55), (0.60, 0.06, 0.68)],
    "roof": [(0.02, 0.50, 0.42), (0.62, 0.18, 0.36), (0.08, 0.40, 0.36)],
    "tree": [(0.29, 0.62, 0.40), (0.25, 0.58, 0.50), (0.38, 0.45, 0.34), (0.10, 0.70, 0.68)],
    "flowers": [(0.30, 0.55, 0.42), (0.26, 0.55, 0.50)],
    "petals": [(0.95, 0.55, 0.95), (0.00, 0.75, 0.88), (0.14, 0.70, 0.98), (0.78, 0.45, 0.90)],
    "paint": [(0.00, 0.78, 0.75), (0.60, 0.70, 0.65), (0.13, 0.72, 0.90), (0.40, 0.05, 0.88)],
    "sail": [(0.12, 0.06, 0.97), (0.58, 0.10, 0.92), (0.04, 0.55, 0.88)],
    "cow": [(0.10, 0.06, 0.93), (0.09, 0.25, 0.86)],
    "patch": [(0.08, 0.30, 0.14), (0.06, 0.60, 0.40)],
}
BARK, GLASS, RUBBER, SNOW, HAZE = np.array(
    [(0.36, 0.26, 0.18), (0.30, 0.40, 0.50), (0.10, 0.10, 0.11), (0.96, 0.97, 1.0), (0.80, 0.85, 0.90)],
    dtype=np.float32,
)[..., None, None]
MORTAR, YELLOW, MUZZLE = np.array([(0.85, 0.82, 0.78), (0.94, 0.85, 0.30), (0.80, 0.60, 0.55)], dtype=np.float32)[
    ..., None, None
]

# Grounds from the horizon to the camera.
LAYOUTS = (
    ("grass",), ("sand",), ("sea",), ("sea", "sand"), ("sea", "grass"), ("sea", "road"),
    ("grass", "road"), ("sand", "road"), ("grass", "sand"), ("grass", "sea"),
)  # fmt: skip


def _tint(rng: np.random.Generator, name: str) -> np.ndarray:
    """Draw a jittered color of `name`: 3 x 1 x 1, a factor for a texture."""
    hue, saturation, value = TINTS[name][rng.integers(len(TINTS[name]))]
    dh, ds, dv = rng.normal(size=3) * (0.015, 0.12, 0.08)
    saturation, value = np.clip((saturation * (1 + ds), value * (1 + dv)), 0, 1)
    return np.array(colorsys.hsv_to_rgb((hue + dh) % 1, saturation, value), dtype=np.float32)[:, None, None]


def _noise(rng: np.random.Generator, shape: tuple[int, int], rows: float, columns: float) -> np.ndarray:
    """Draw smooth noise, standard deviation about 1, blobs of `rows` x `columns` pixels: float32, `shape`."""
    grid = rng.standard_normal((2 + int(shape[0] / rows), 2 + int(shape[1] / columns)), np.float32)
    return 1.4 * np.asarray(Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC))


def _over(base: np.ndarray, weight: np.ndarray, color: np.ndarray) -> np.ndarray:
    return base + weight.astype(np.float32) * (color - base)


def _disc(x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1


def _box(x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    return (abs(x - cx) < rx) & (abs(y - cy) < ry)


# Backdrops. x and depth are H x W: x in image heights; depth 0 at the horizon, 1 at the lower edge, negative
# above. Each returns color, 3 x H x W; mountains also their shape, H x W bool.


def _sky(rng: Generator, x: Array, depth: Array) -> Array:
    clouds = _noise(rng, x.shape, 14, 40) + 0.5 * _noise(rng, x.shape, 5, 12)
    blue = _over(_tint(rng, "horizon"), np.clip(-depth * 1.6, 0, 1), _tint(rng, "zenith"))
    return _over(blue, np.clip(0.6 * clouds - rng.uniform(-0.1, 0.8), 0, 0.9), SNOW)


def _mountain(rng: Generator, x: Array, depth: Array) -> tuple[Array, Array]:
    peaks, heights = rng.uniform(0, x.max(), 5)[:, None], -depth.min() * rng.uniform(0.35, 0.85, 5)[:, None]
    flanks = np.float32(heights - rng.uniform(0.3, 0.8, 5)[:, None] * abs(x[0] - peaks))
    ridge = np.maximum(flanks.max(0) + 0.008 * _noise(rng, (2, x.shape[1]), 1, 4)[0], 0.04)
    sunlit = np.float32(x[0] > peaks[flanks.argmax(0), 0])
    crags = _noise(rng, x.shape, 10, 3) + _noise(rng, x.shape, 3, 2)
    rock = _tint(rng, "mountain") * (0.78 + 0.4 * sunlit + 0.13 * crags)
    snow = (-depth + 0.02 * crags > ridge - 0.07) & (-depth > rng.uniform(0.12, 0.5))
    return _over(rock, 0.8 * snow, SNOW * (0.75 + 0.2 * sunlit)), (-depth < ridge) & (depth < 0)


def _sea(rng: Generator, x: Array, depth: Array) -> Array:
    swell = np.sin(rng.uniform(18, 30) / (depth.clip(0) + 0.25) + 1.2 * _noise(rng, x.shape, 4, 16))
    ripples = _noise(rng, x.shape, 1.6, 9)
    water = _tint(rng, "sea") * (1 + 0.10 * swell + 0.09 * ripples)
    return _over(water, np.clip(0.5 * (ripples + swell) - 0.9, 0, 0.7), SNOW)


def _grass(rng: Generator, x: Array, depth: Array) -> Array:
    blades = _noise(rng, x.shape, rng.uniform(3, 6), 1.2)
    meadow = 1 + (0.05 + 0.12 * depth.clip(0)) * blades + 0.08 * _noise(rng, x.shape, 8, 20)
    return _over(_tint(rng, "grass") * meadow, 0.15 * (blades > 1.2), YELLOW)


def _sand(rng: Generator, x: Array, depth: Array) -> Array:
    warp = 1.4 * _noise(rng, x.shape, 14, 28) + rng.uniform(-6, 6) * x
    ripples = np.sin(rng.uniform(35, 60) * np.sqrt(depth.clip(0) + 0.05) + warp)
    grain = rng.standard_normal(x.shape, np.float32)
    return _tint(rng, "sand") * (1 + 0.10 * ripples + 0.06 * grain)


def _road(rng: Generator, x: Array, depth: Array) -> Array:
    distance = 1 / (depth.clip(0) + 0.2)
    along, across = rng.uniform(4, 6) * distance, rng.uniform(4, 6) * (x - 0.75) * distance
    slabs = rng.standard_normal((32, 32), np.float32)[along.astype(int) % 32, np.floor(across).astype(int) % 32]
    joints = (along % 1 < 0.10 * distance.clip(1, 3)) | (across % 1 < 0.07 * distance.clip(1, 3))
    grain = rng.standard_normal(x.shape, np.float32)
    return _tint(rng, "road") * (1 + 0.07 * slabs + 0.03 * grain - 0.32 * joints)


# Objects. x and y are h x w, in object heights: x from the middle, y up from the foot.
# Each returns color, 3 x h x w, and shape, h x w bool.


def _house(rng: Generator, x: Array, y: Array) -> tuple[Array, Array]:
    half, eaves, courses = rng.uniform(0.42, 0.6), rng.uniform(0.55, 0.66), rng.uniform(12, 17)
    shift = 0.5 * (np.floor(y * courses) % 2)
    mortar = (y * courses % 1 < 0.24) | ((x * courses / 2 + shift) % 1 < 0.14)
    color = _over(_tint(rng, "house"), 0.45 * mortar, MORTAR)
    panes = _box(abs(x), y, 0.55 * half, 0.62 * eaves, 0.13 * half, 0.17 * eaves)
    color = _over(color, panes | _box(x, y, 0, 0, 0.15 * half, 0.75 * eaves), 0.8 * GLASS)
    color = _over(color, y > eaves, _tint(rng, "roof") * (1 + 0.16 * np.sin(75 * y)))
    gable = 1.15 * half - rng.uniform(0.3, 1.1) * half * (y - eaves) / (1 - eaves)
    return color, abs(x) < np.where(y > eaves, gable, half)


def _tree(rng: Generator, x: Array, y: Array) -> tuple[Array, Array]:
    leaves = _noise(rng, x.shape, 4, 4) + 0.6 * _noise(rng, x.shape, 2, 2)
    if rng.random() < 0.35:
        crown = (abs(x) < 0.34 * (1.02 - y) * (0.75 + 0.5 * (-y * 5 % 1))) & (y > 0.14)
    else:
        blobs = rng.uniform((-0.2, 0.5, 0.14), (0.2, 0.78, 0.22), (6, 3))
        crown = np.any([_disc(x + 0.012 * leaves, y, cx, cy, r, r) for cx, cy, r in blobs], axis=0)
    color = _tint(rng, "tree") * (0.75 + 0.5 * y + 0.2 * leaves).clip(0.3, 1.7)
    color = _over(color, ~crown, BARK * (1 + 0.3 * np.sin(90 * x)))
    return color, crown | _box(x, y, 0, 0, 0.05, 0.6)


def _flowers(rng: Generator, x: Array, y: Array) -> tuple[Array, Array]:
    leaves, count = _noise(rng, x.shape, 2, 2), rng.uniform(4.5, 6.5)
    row, column = y * count, x * count + 0.5 * (np.floor(y * count) % 2)
    bloom = _disc(row % 1, column % 1, 0.5, 0.5, 0.36, 0.36)
    bloom &= (rng.random((8, 16)) < 0.85)[row.astype(int) % 8, np.floor(column).astype(int) % 16]
    color = _over(_tint(rng, "flowers") * (0.9 + 0.2 * leaves), bloom, _tint(rng, "petals"))
    color = _over(color, _disc(row % 1, column % 1, 0.5, 0.5, 0.12, 0.12), YELLOW)
    return color, (abs(x) / rng.uniform(0.8, 1.1)) ** 2.5 + y**2.5 < 0.95 + 0.05 * leaves


def _car(rng: Generator, x: Array, y: Array) -> tuple[Array, Array]:
    nose, roof = rng.uniform(0.85, 1.0), rng.uniform(0.45, 0.65)
    body = _box(x, y, 0, 0.37, nose, 0.21) & ~((abs(x) > nose - 0.12) & (y > 0.5))
    cabin = (abs(x + 0.1) < roof - 0.45 * (y - 0.58)) & (y >= 0.58)
    panes = (abs(abs(x + 0.1) - 0.26) < 0.22 - 0.3 * (y - 0.6)) & (abs(y - 0.75) < 0.14)
    color = _tint(rng, "paint") * (0.7 + 0.5 * y + 0.25 * _box(x, y, 0, 0.5, 2, 0.05))
    wheels = _disc(abs(x), y, 0.56, 0.2, 0.2, 0.2)
    color = _over(_over(color, panes, GLASS), wheels, RUBBER)
    return _over(color, _disc(abs(x), y, 0.56, 0.2, 0.09, 0.09), HAZE), body | cabin | wheels


def _boat(rng: Generator, x: Array, y: Array) -> tuple[Array, Array]:
    hull = (y < 0.24) & (abs(x) < 0.32 + 0.7 * y)
    reach = (1 - y) / 0.7
    sails = (y > 0.23) & (x > -rng.uniform(0.3, 0.45) * (reach - 0.15)) & (x < rng.uniform(0.4, 0.55) * reach)
    cloth = _tint(rng, "sail") * (1 - 0.16 * (y * rng.uniform(7, 10) % 1 < 0.25) + 0.1 * x)
    color = _over(cloth, hull, _tint(rng, "paint") * (0.6 + 2 * y))
    mast = abs(x) < 0.022
    return _over(color, (mast & ~hull) | _box(x, y, 0, 0.22, 2, 0.025), BARK), hull | sails | mast


def _cow(rng: Generator, x: Array, y: Array) -> tuple[Array, Array]:
    x = x if rng.random() < 0.5 else -x
    body = (abs(x + 0.1) / 0.6) ** 3 + (abs(y - 0.62) / 0.25) ** 3 < 1
    head = _disc(x, y, 0.6, 0.78, 0.19, 0.15) | _disc(x, y, 0.5, 0.93, 0.09, 0.05)
    legs = (_box(abs(x + 0.1), y, 0.46, 0.2, 0.06, 0.3)) | _box(abs(x + 0.1), y, 0.28, 0.22, 0.055, 0.25)
    coat = _tint(rng, "cow") * (0.72 + 0.35 * y)
    color = _over(coat, _noise(rng, x.shape, 7, 8) > rng.uniform(0.1, 0.5), _tint(rng, "patch"))
    return _over(color, _disc(x, y, 0.73, 0.75, 0.07, 0.09), MUZZLE), body | head | legs


GROUNDS = {"sea": _sea, "grass": _grass, "sand": _sand, "road": _road}
# Painter, height in image heights (at depth 1), width in object heights, and allowed grounds.
OBJECTS: dict[str, tuple[Callable, float, float, tuple[str, ...]]] = {
    "house": (_house, 0.62, 1.4, ("grass", "sand")),
    "tree": (_tree, 0.66, 0.84, ("grass", "sand")),
    "flowers": (_flowers, 0.30, 2.2, ("grass", "sand")),
    "car": (_car, 0.32, 2.0, ("road", "sand")),
    "boat": (_boat, 0.55, 1.2, ("sea",)),
    "cow": (_cow, 0.40, 1.6, ("grass",)),
}


def _landscape(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Draw image (3 x H x W float32), mask (H x W uint8) and depth (H x W float32), without objects."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    horizon = rng.uniform(0.22, 0.42)
    depth = (y - horizon) / (1 - horizon)
    image, mask = _sky(rng, x, depth), np.zeros((height, width), np.uint8)

    def paint(name: str, color: np.ndarray, where: np.ndarray) -> None:
        np.copyto(image, color, where=where)
        mask[where] = CLASSES.index(name)

    if rng.random() < 0.35:
        paint("mountain", *_mountain(rng, x, depth))
    far, *near = LAYOUTS[rng.integers(len(LAYOUTS))]
    paint(far, GROUNDS[far](rng, x, depth), depth >= 0)
    for name in near:
        shore = rng.uniform(0.25, 0.5) + 0.06 * np.sin(rng.uniform(1, 5) * x + rng.uniform(0, 6))
        if name == "road" and rng.random() < 0.5:
            shore = abs(x - rng.uniform(0.6, 0.9)) / rng.uniform(0.5, 0.8) - 0.05
        paint(name, GROUNDS[name](rng, x, depth), depth > shore.clip(0.02))
    return _over(image, 0.3 * (1 - abs(depth) * 3).clip(0), HAZE), mask, depth


def _populate(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, depth: np.ndarray) -> None:
    """Draw 1 to 4 kinds of objects on their grounds, far ones first; modifies `image` and `mask`."""
    spots = {
        kind: np.flatnonzero(np.isin(mask, [CLASSES.index(g) for g in on])) for kind, (*_, on) in OBJECTS.items()
    }
    present = [kind for kind in OBJECTS if len(spots[kind])]
    chosen = rng.permutation(present)[: rng.integers(1, 5)]
    feet = [(rng.choice(spots[kind]), kind) for kind in chosen for _ in range(rng.integers(1, 4))]
    light = rng.uniform(-0.3, 0.3)
    for spot, kind in sorted(feet):
        _place(rng, image, mask, kind, divmod(int(spot), mask.shape[1]), float(depth.flat[spot]), light)


def _place(
    rng: Generator, image: Array, mask: Array, kind: str, place: tuple[int, int], near: float, light: float
) -> None:
    """Draw an object and its soft shadow; its foot is at row and column `place`, depth `near`."""
    foot, middle = place
    painter, size, aspect, _ = OBJECTS[kind]
    size *= len(mask) * (0.42 + 0.7 * near) * rng.uniform(0.85, 1.15)
    reach = int(size * (aspect / 2 + 0.1))
    box = np.s_[max(0, foot - int(size)) : foot + 1 + int(0.12 * size), max(0, middle - reach) : middle + reach]
    image, mask = image[:, box[0], box[1]], mask[box]
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]].astype(np.float32)
    x, y = (x + box[1].start - middle) / size, (foot + 0.5 - y - box[0].start) / size
    shadow = 1 - ((x + 0.4 * light) / (0.45 * aspect)) ** 2 - (y / 0.12) ** 2
    image *= 1 - 0.45 * shadow.clip(0)
    color, shape = painter(rng, x, y.clip(0))
    color = color * (1 + 1.6 * light * x / aspect)
    np.copyto(image, color + 0.3 * (1 - near) * (HAZE - color), where=shape & (y > 0))
    mask[shape & (y > 0)] = CLASSES.index(kind)


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add colour cast, uneven light, lens blur and sensor noise: 3 x H x W float32 -> H x W x 3 uint8."""
    _, height, width = image.shape
    warmth = np.float32(rng.uniform(-0.14, 0.14) * np.array((1, 0.1, -1)))[:, None, None]
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    light = 1 + rng.uniform(-0.14, 0.14) * x + rng.uniform(-0.1, 0.1) * y
    light = (light + 0.06 * _noise(rng, (height, width), 50, 60)) * rng.uniform(0.72, 1.12)
    image = (255 * image * light * (1 + warmth)).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    blur = ImageFilter.GaussianBlur(rng.uniform(0.35, 0.8))
    image = np.array(Image.fromarray(image).filter(blur), np.float32)
    image += rng.uniform(1, 4.5) * rng.standard_normal(image.shape, np.float32)
    return image.round().clip(0, 255).astype(np.uint8)


def make_scene(seed: int, height: int = SIZE[0], width: int = SIZE[1]) -> tuple[np.ndarray, np.ndarray]:
    """Draw a deterministic scene: image (H x W x 3 uint8) and mask (H x W uint8).

    Mask pixels are indices into `CLASSES`; a scene has 3 to 8 classes. Objects scale with `height`.
    Raises ValueError for a negative seed.
    """
    rng = np.random.default_rng(seed)
    image, mask, depth = _landscape(rng, height, width)
    _populate(rng, image, mask, depth)
    return _photograph(rng, image), mask


@dataclass(frozen=True)
class Scenes:
    """Folders of a prepared data set: JPEG images, and PNG masks of the `val` images."""

    train: Path
    val_images: Path
    val_masks: Path


def prepare(folder: Path | None = None, *, train: int = 4000, val: int = 200, seed: int = 0) -> Scenes:
    """Write the data set to a subfolder of `folder`, unless it exists.

    `folder` defaults to `$SLOTCON_HUB_CACHE`, else to `slotcon_hub` in the user's cache. The write is atomic, also
    with several processes. Mask pixels are indices into `CLASSES`. Raises ValueError unless `train` and `val` are
    at least 1 and `seed` at least 0, and if the folder is not writable.
    """
    if train < 1 or val < 1:
        raise ValueError(f"train={train}, val={val}: both need at least one scene")
    if seed < 0:
        raise ValueError(f"seed={seed}: give at least 0")
    folder = folder or cache_folder()
    finished = folder / f"scenes-{VERSION}-{train}-{val}-{seed}"
    if not finished.is_dir():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            reason = f"the scenes cannot be written to {folder} ({error.strerror})"
            raise ValueError(f"{reason}: set SLOTCON_HUB_CACHE to a folder for them") from None
        with tempfile.TemporaryDirectory(prefix=f".{finished.name}-", dir=folder) as scratch:
            _write(_inside(Path(scratch, "set")), train, val, seed)
            try:
                os.replace(Path(scratch, "set"), finished)
            except OSError:
                if not finished.is_dir():  # otherwise another process has written the same files
                    raise
    return _inside(finished)


def _inside(root: Path) -> Scenes:
    return Scenes(root / "train", root / "val" / "images", root / "val" / "masks")


def _write(scenes: Scenes, train: int, val: int, seed: int) -> None:
    for path in (scenes.train, scenes.val_images, scenes.val_masks):
        path.mkdir(parents=True)
    first = seed << 32  # each data set has its own block of seeds: the first half for val, the second for train
    with tqdm(total=train + val, desc="drawing scenes", unit="scene") as progress:
        for i in range(train):
            image, _ = make_scene(first + 2**31 + i)
            Image.fromarray(image).save(scenes.train / f"{i:06d}.jpg", quality=92)
            progress.update()
        for i in range(val):
            image, mask = make_scene(first + i)
            Image.fromarray(image).save(scenes.val_images / f"{i:06d}.jpg", quality=92)
            labels = Image.fromarray(mask)
            labels.putpalette(PALETTE.tobytes())
            labels.save(scenes.val_masks / f"{i:06d}.png")
            progress.update()

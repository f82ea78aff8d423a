#!/usr/bin/env bash
# torchvision 0.29.1: AnchorGenerator rounds its base anchors to whole pixels, which Detectron2 and mmdetection do not.
#
# Weights of a Faster or Mask R-CNN from Detectron2 fit torchvision's detector tensor by tensor, and its anchor sizes
# and ratios read the same. Yet the anchors of ratios 0.5 and 2 differ by up to half a pixel on each side, at sizes of
# 32 to 512 px; the box regression was trained for the unrounded ones. All proposals shift a little, boxes of small
# objects most. No option switches it off: cell_anchors must be replaced.
#
# Seen: "a 32 px anchor of ratio 0.5: torchvision 46 x 22, unrounded 45.25 x 22.63; intersection over union 0.957"
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy
"$folder/env/bin/python" - <<'PY'
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

made = AnchorGenerator(sizes=((32,),), aspect_ratios=((0.5,),)).cell_anchors[0]
height, width = 32 * 0.5**0.5, 32 / 0.5**0.5
exact = torch.tensor([[-width, -height, width, height]]) / 2
overlap = box_iou(made, exact).item()
sides = (made[0, 2:] - made[0, :2]).tolist()
print(
    f"a 32 px anchor of ratio 0.5: torchvision {sides[0]:g} x {sides[1]:g}, unrounded {width:.2f} x {height:.2f}; "
    f"intersection over union {overlap:.3f}"
)
if sides != [46, 22]:
    raise SystemExit("this has changed: the sides of anchors were whole numbers before")
PY

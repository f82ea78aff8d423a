"""MMSegmentation's numbers for its fully-convolutional networks, and ours on the same tensors.

Nothing is stored: tensors are drawn from their names, images and labels from a seed, as the file was made.
"""

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor

from training.data.masks import IGNORE
from training.transfer.semantic.model import FCN, Head, create_backbone, pixel_loss
from training.transfer.semantic.recipes import RECIPES


def compare(file: Path) -> dict[str, float]:
    """The largest relative difference of each group of numbers, by kind of network, mode and group."""
    worst: dict[str, float] = {}
    for case in json.loads(file.read_text())["cases"]:
        for mode, expected in case["expected"].items():
            found = measure(case, train=mode == "train")
            for name, value in expected.items():
                key = f"{case['kind']} {mode} {name}"
                difference = relative_difference(found[name], value) if name in found else math.inf
                worst[key] = max(worst.get(key, 0.0), difference)
    return worst


def relative_difference(found: Any, expected: Any) -> float:
    found, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (found, expected))
    if found.shape != expected.shape or not found.isfinite().all():
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


@torch.no_grad()
def measure(case: dict[str, Any], train: bool) -> dict[str, Any]:
    """Our numbers: networks and batch are made anew, since training changes BatchNorm's statistics."""
    recipe, classes, (height, width) = RECIPES[case["kind"]][1], case["classes"], case["size"]
    net = FCN(backbone(case["shapes"], recipe.output_stride), classes, *heads(case), recipe.align_corners).double()
    net.load_state_dict({name: filled(name, shape) for name, shape in case["shapes"].items()})
    net.train(train)
    rng = torch.Generator().manual_seed(case["seed"])
    images = torch.randn(2, 3, height, width, generator=rng, dtype=torch.float64)
    truth = torch.randint(0, classes, (2, height, width), generator=rng)
    truth[:, : height // 5] = IGNORE
    maps: list[Tensor] = []
    net.backbone.register_forward_hook(lambda *call: maps.extend(call[-1]))
    logits = net(images).logits
    upsampled = net.upsample(logits, truth.shape[1:])
    numbers = {
        "feature_shapes": [list(one.shape) for one in maps],
        "logits_shape": list(logits.shape),
        "logits_norm": logits.norm(),
        "logits_first": logits[0, :5, 0, 0],
        "upsampled_norm": upsampled.norm(),
        "prediction_histogram": upsampled.argmax(1).flatten().bincount(minlength=classes),
        "loss_over_all_pixels": pixel_loss(logits, truth, align_corners=recipe.align_corners),
    }
    if net.auxiliary_head is not None:  # in eval mode too, where the network itself leaves it out
        auxiliary = net.auxiliary_head(maps[-2])
        loss = pixel_loss(auxiliary, truth, align_corners=recipe.align_corners)
        numbers["aux_norm"] = net.upsample(auxiliary, truth.shape[1:]).norm()
        numbers["aux_loss_over_all_pixels"] = recipe.auxiliary_weight * loss
    return numbers


def heads(case: dict[str, Any]) -> tuple[Head, Head | None]:
    """The recipe's heads, as wide and deep as the file's, without dropout, which the file was made without."""
    recipe, shapes = RECIPES[case["kind"]][1], case["shapes"]
    forms = []
    for name, form in (("decode_head", recipe.head), ("auxiliary_head", recipe.auxiliary)):
        convs = [n for n in shapes if n.startswith(f"{name}.convs.") and n.endswith("conv.weight")]
        concat = f"{name}.conv_cat.conv.weight" in shapes
        if convs:
            channels = shapes[convs[0]][0]
            form = replace(form, channels=channels, convs=len(convs), concat_input=concat, dropout=0.0)
        forms.append(form if convs else None)
    return forms[0], forms[1]


def backbone(shapes: dict[str, list[int]], output_stride: int) -> Any:
    """The ResNet that has these tensors."""
    stages = [f"backbone.layer{stage}." for stage in range(1, 5)]
    layers = [len({name.split(".")[2] for name in shapes if name.startswith(stage)}) for stage in stages]
    form = {
        "block": Bottleneck if "backbone.layer1.0.conv3.weight" in shapes else BasicBlock,
        "layers": tuple(layers),
        "channels": tuple(shapes[f"{stage}0.conv1.weight"][0] for stage in stages),
        "out_indices": (-4, -3, -2, -1),
    }
    return create_backbone("resnet50", output_stride, pretrained=False, **form)


def filled(name: str, shape: list[int]) -> Tensor:
    """The tensor that stands under a name in the files of Detectron2's and of MMSegmentation's numbers."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    t = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())), dtype=torch.float64)
    if name.endswith("running_mean"):
        return 0.05 * t
    if name.endswith("running_var"):
        return 1 + 0.1 * t.abs()
    if len(shape) == 1:
        t = 1 + 0.1 * t if name.endswith("weight") else 0.1 * t
        return t * 0.25 if name.endswith(("conv3.norm.weight", "bn3.weight")) else t
    t = t * math.sqrt(2 / math.prod(shape[1:]))
    return t * 0.3 if "pred" in name or "anchor_deltas" in name else t

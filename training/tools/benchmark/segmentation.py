"""The segmentation network of VOC beside DeepLabV3, and sliding windows beside the forwards that they need."""

import gc
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from training.engine.words import show
from training.tools.benchmark.contenders import Contender, alternate, compare
from training.tools.benchmark.step import describe_machine
from training.transfer.semantic.evaluation import Predictor, windows
from training.transfer.semantic.model import FCN, create_backbone, pixel_loss
from training.transfer.semantic.recipes import CITYSCAPES, VOC

__all__ = ["benchmark"]

CLASSES = {"voc": 21, "cityscapes": 19}
CFG = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def benchmark(
    encoder: str = "resnet50",
    crop: int = VOC.crop,
    batch_size: int = 2,
    image: tuple[int, int] = (1024, 2048),
    rounds: int = 5,
) -> None:
    """Print what a training step costs beside segmentation_models_pytorch's DeepLabV3, and a test by windows.

    All have the same encoder, batch and crop, in float32, and SGD with momentum; rounds alternate between them.
    "GB of tensors" counts all storages that live at the peak of a step: weights, gradients, momentum, activations.
    A test of an image by Cityscapes' windows stands beside the forwards of the same windows alone.

    Args:
        encoder: a name that timm and segmentation_models_pytorch both know.
        crop: side in pixels.
        batch_size: images.
        image: height and width of the test image.
        rounds: of each, whose median is shown.

    Raises:
        ValueError: a number is too small, or segmentation_models_pytorch is not installed.
    """
    if min(crop, rounds, *image) < 1 or batch_size < 2:
        raise ValueError("measure 1 round or more, of 2 images or more, of at least 1 pixel")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    contenders = _contenders(encoder, crop, batch_size, device)
    table = compare(contenders, rounds, device)
    show(f"{encoder}, {batch_size} crops of {crop} px, {rounds} rounds, {describe_machine(device)}", table)
    del contenders
    gc.collect()
    _show_windows(encoder, image, rounds, device)


def _contenders(encoder: str, crop: int, batch_size: int, device: torch.device) -> dict[str, Contender]:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise ValueError(
            "segmentation_models_pytorch is missing: pip install segmentation-models-pytorch"
        ) from None
    classes = CLASSES["voc"]
    x = torch.randn(batch_size, 3, crop, crop, device=device).contiguous(memory_format=torch.channels_last)
    truth = torch.randint(0, classes, (batch_size, crop, crop), device=device)

    def own_loss(net: nn.Module) -> Tensor:
        return pixel_loss(net(x).logits, truth, align_corners=VOC.align_corners)

    def their_loss(net: nn.Module) -> Tensor:
        scores = net(x)
        if scores.shape[2:] != truth.shape[1:]:
            scores = F.interpolate(scores, truth.shape[1:], mode="bilinear")
        return F.cross_entropy(scores, truth)

    backbone = create_backbone(encoder, VOC.output_stride, pretrained=False)
    nets: dict[str, tuple[nn.Module, Any]] = {
        "ours, output stride 16": (FCN(backbone, classes, VOC.head), own_loss)
    }
    for stride in (16, 8):
        net = smp.DeepLabV3(encoder, encoder_weights=None, encoder_output_stride=stride, classes=classes)
        net.requires_divisible_input_shape = False  # 513 is 32 cells and a pixel
        usual = ", as it comes" if stride == 8 else ""
        nets[f"DeepLabV3, output stride {stride}{usual}"] = (net, their_loss)
    return {
        name: Contender(net, partial(loss, net.to(device).to(memory_format=torch.channels_last)), [x, truth])
        for name, (net, loss) in nets.items()
    }


def _show_windows(encoder: str, image: tuple[int, int], rounds: int, device: torch.device) -> None:
    recipe = CITYSCAPES
    backbone = create_backbone(encoder, recipe.output_stride, pretrained=False)
    net = FCN(backbone, CLASSES["cityscapes"], recipe.head).eval()
    net.to(device).to(memory_format=torch.channels_last)
    predictor = Predictor(net, CFG, window=recipe.window, stride=recipe.window_stride)
    pixels = torch.randint(0, 256, (3, *image), dtype=torch.uint8)
    assert recipe.window is not None
    assert recipe.window_stride is not None
    parts = list(windows(*image, recipe.window, recipe.window_stride))
    inputs = [torch.randn(1, 3, image[0], image[1], device=device)[:, :, rows, columns] for rows, columns in parts]

    def forwards() -> None:
        with torch.inference_mode():
            for x in inputs:
                net(x)

    times = alternate({"a test": lambda: predictor(pixels), "its forwards alone": forwards}, rounds, device)
    table = Table(f"{image[1]} x {image[0]} px, {len(parts)} windows", "ms", "ratio")
    for name, taken in times.items():
        table.add_row(name, f"{taken:,.0f}", f"{taken / times['its forwards alone']:.2f}")
    show(table)

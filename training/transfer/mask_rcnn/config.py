"""Configuration of a detector; the defaults are the paper's."""

from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["MaskRCNNConfig"]


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Architecture, sampling and thresholds of a Mask R-CNN.

    Attributes:
        backbone: timm model with feature maps of strides 4, 8, 16 and 32; of a detector, its architecture.
        backbone_args: arguments of the architecture.
        classes: class names in the order of the labels 0, 1, ...
        category_ids: the data set's ids of these classes.
        channels: of the pyramid and the heads.
        norms: BatchNorm instead of biases in the convolutions of pyramid, box head and mask head.
        box_convs: convolutions of the box head.
        box_layers: fully connected layers of the box head.
        stride_in_1x1: stride of a bottleneck in its first convolution, as in the original Detectron.
        proposals: maximum proposals per image.
        regions: proposals and ground-truth boxes sampled per image for the losses of the heads.
        mean: of red, green and blue in 0-255; the backbone's, here ImageNet's, as SlotCon's and most others'.
        std: standard deviation of red, green and blue in 0-255; likewise.
        score_threshold: minimum score of detections.
        detections: maximum per image.
        test_side: short side of test images in pixels.
        longest_side: maximum long side in pixels, in training and test.
    """

    backbone: str = "resnet50"
    backbone_args: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    channels: int = 256
    norms: bool = True
    box_convs: int = 4
    box_layers: int = 1
    stride_in_1x1: bool = False
    proposals: int = 1000
    regions: int = 512
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    score_threshold: float = 0.05
    detections: int = 100
    test_side: int = 800
    longest_side: int = 1333

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("a detector needs classes: give the names of at least one")
        ids = self.category_ids or tuple(range(1, len(self.classes) + 1))
        if len(ids) != len(self.classes) or len(set(ids)) != len(ids):
            raise ValueError(f"{len(self.classes)} classes need as many different category_ids, not {ids}")
        object.__setattr__(self, "category_ids", ids)
        for name in ("classes", "category_ids", "mean", "std"):  # lists, where they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def numbered(cls, classes: int, **kwargs: object) -> "MaskRCNNConfig":
        """Create a configuration with classes named 0, 1, ..."""
        return replace(cls(classes=tuple(str(n) for n in range(classes))), **kwargs)  # type: ignore[arg-type]

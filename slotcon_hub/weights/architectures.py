"""timm's own names and arguments for our architectures."""

from typing import Any

__all__ = ["plain_timm"]

_NANO = {"channels": (32, 64, 128, 256), "stem_width": 16, "output_stride": 16}

_PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "slotcon_nano": ("resnet10t", _NANO),
    "slotcon_r18": ("resnet18", {}),
    "slotcon_r34": ("resnet34", {}),
    "slotcon_r50": ("resnet50", {}),
    "slotcon_r101": ("resnet101", {}),
}


def plain_timm(architecture: str) -> tuple[str, dict[str, Any]]:
    """Find timm's own architecture for a backbone, which loads without this package.

    Args:
        architecture: any timm model; ours are translated.

    Returns:
        Name of timm's architecture, and the arguments that make it the same network.
    """
    return _PLAIN.get(architecture, (architecture, {}))

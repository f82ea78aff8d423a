"""SlotCon backbones and semantic prototypes for timm."""

__version__ = "0.1.0"

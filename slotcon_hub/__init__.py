"""SlotCon backbones and semantic prototypes; importing this package registers its models with timm."""

from slotcon_hub import slotcon_resnet as _models  # registers the models
from slotcon_hub.slotcon import SlotCon, SlotConConfig, SlotConOutput

__version__ = "0.1.0"
__all__ = ["SlotCon", "SlotConConfig", "SlotConOutput"]

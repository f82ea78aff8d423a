"""SlotCon backbones and semantic prototypes; importing this package registers them with timm."""

from slotcon_hub import slotcon_resnet as slotcon_resnet  # registers the models with timm
from slotcon_hub.slotcon import SlotCon, SlotConConfig, SlotConOutput

__version__ = "0.1.0"
__all__ = ["SlotCon", "SlotConConfig", "SlotConOutput"]

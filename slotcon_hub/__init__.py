"""SlotCon backbones and semantic prototypes; importing this package registers them with timm."""

from slotcon_hub.models import resnet as resnet  # registers the models with timm
from slotcon_hub.objective.slotcon import SlotCon, SlotConConfig, SlotConOutput

__version__ = "0.1.0"
__all__ = ["SlotCon", "SlotConConfig", "SlotConOutput"]

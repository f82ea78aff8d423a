"""SlotCon backbones and semantic prototypes; importing this package registers them with timm."""

import os
import sys
from pathlib import Path

if Path(sys.argv[0]).stem == "slotcon-hub":  # which owns its process; OpenMP reads this when torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # on a busy CPU, threads that spin take many times as long

from slotcon_hub.models import resnet as resnet  # registers the models with timm
from slotcon_hub.objective.slotcon import SlotCon, SlotConConfig, SlotConOutput

__version__ = "0.1.0"
__all__ = ["SlotCon", "SlotConConfig", "SlotConOutput"]

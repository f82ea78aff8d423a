"""SlotCon backbones and semantic prototypes; importing this package registers them with timm."""

import os
import sys
from pathlib import Path

# The command owns its process. OpenMP reads these when torch is loaded; why, says training/__init__.py.
if Path(sys.argv[0]).stem == "slotcon-hub" and "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from slotcon_hub.models import resnet as resnet  # registers the models with timm
from slotcon_hub.objective.slotcon import SlotCon, SlotConConfig, SlotConOutput

__version__ = "0.1.0"
__all__ = ["SlotCon", "SlotConConfig", "SlotConOutput"]

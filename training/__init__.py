"""Pre-training and evaluation: lives in the checkout, never in the wheel.

Its commands own their processes. On a CPU that others use too, OpenMP's threads must not spin while they wait for
each other: a step would take many times as long. The runtime reads this when torch is loaded, so it stands here.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

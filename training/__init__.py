"""Pre-training, transfer and evaluation: only in the checkout, not in the wheel.

Sets OMP_WAIT_POLICY for the commands here, before torch is loaded: on a busy CPU, OpenMP threads that spin while
they wait make a step many times slower.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

"""Pre-training, transfer and evaluation: only in the checkout, not in the wheel.

Sets how OpenMP's threads wait in the commands here, before torch is loaded. Threads that spin for long make a step
many times slower on a busy CPU; threads that never spin make it a quarter slower on an idle one. So libgomp spins
10,000 times before a thread sleeps; other runtimes do not spin.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

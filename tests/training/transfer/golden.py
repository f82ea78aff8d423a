"""How far the transferred networks are from those of the tools that the paper's were trained with."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "support"))  # as pytest does; this file is used by itself, too

import mmseg_golden


def mmseg(case: Path) -> dict[str, float]:
    """Run the networks of a file of MMSegmentation's numbers in float64.

    Returns:
        The largest relative difference of each group of numbers, by kind of network, mode and group.
    """
    return mmseg_golden.compare(case)

"""How far the transferred networks are from those of the tools that the paper's were trained with."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "support"))  # as pytest does; this file is used by itself, too


def mmseg(case: Path) -> dict[str, float]:
    """Run the networks of a file of MMSegmentation's numbers in float64.

    Returns:
        The largest relative difference of each group of numbers, by kind of network, mode and group.
    """
    import mmseg_golden

    return mmseg_golden.compare(case)


def detectron2(case: Path) -> dict[str, float]:
    """Run the detector of a file of Detectron2's numbers in float64.

    Returns:
        The largest relative difference of each group of numbers, by mode and group. To a zero it is absolute; to
        values of another number or shape it is infinite.
    """
    import detectron2_golden  # here, since it needs pycocotools

    return detectron2_golden.compare(case)

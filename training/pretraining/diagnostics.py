"""Diagnostics of a pre-training: dead prototypes, entropy of their usage, collapse."""

import math
from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor

from slotcon_hub import SlotConOutput
from training.engine.metrics import Check

__all__ = ["SHOWN", "diagnose", "metrics"]

SHOWN = {"loss": ".3f", "active_slots": ".1f", "dead_slots": ".0f"}
"""Metrics beside the progress bar, with their format."""


def metrics(out: SlotConOutput) -> dict[str, Tensor]:
    """The metrics of a forward: scalars, and ``usage``, the K counts of views that use each prototype."""
    values = {field.name: getattr(out, field.name) for field in fields(out)}
    return {name: value for name, value in values.items() if value is not None}


def diagnose(means: Mapping[str, float], totals: Mapping[str, Tensor]) -> tuple[dict[str, float], list[Check]]:
    """Derive ``dead_slots`` and ``usage_entropy`` (in [0, 1], 1 for uniform usage), and warn.

    Args:
        means: scalars of a line of metrics.
        totals: ``usage``, K counts over the forwards and processes of the line.
    """
    usage = totals["usage"].double()
    share = usage / usage.sum().clamp(min=1)
    entropy = float(-(share * share.clamp(min=1e-12).log()).sum() / math.log(len(share)))
    most, number = (float(value) for value in share.max(0))
    active = means["active_slots"]
    one_prototype = (
        f"prototype {number:.0f} has {most:.0%} of all usage: the run has collapsed onto it; sharpen the targets "
        "(--teacher-temp) or slow the teacher (--teacher-momentum)"
    )
    one_group = (
        f"a view has {active:.2f} active slots: every image is a single group; lower --base-lr or --teacher-temp"
    )
    checks = [
        ("collapse onto one prototype", most > 0.9, one_prototype),
        ("collapse of the views", active < 1.01, one_group),
    ]
    return {"dead_slots": int((usage == 0).sum()), "usage_entropy": entropy}, checks

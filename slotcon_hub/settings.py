"""Checks of settings dataclasses."""

import math
import numbers
from dataclasses import fields
from typing import Any, get_args

__all__ = ["check_numbers"]


def check_numbers(settings: Any) -> None:
    """Reject NaN and Inf in a dataclass's numbers, and fractions in its ``int`` fields; None is accepted.

    Tuples are looked into.

    Range checks alone let NaN pass, since every comparison with it is false.

    Raises:
        ValueError: a number is not allowed.
    """
    for field in fields(settings):
        value, kinds = getattr(settings, field.name), (field.type, *get_args(field.type))
        whole = int in (*kinds, *(part for kind in kinds for part in get_args(kind)))
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, float) and not math.isfinite(one):
                raise ValueError(f"{field.name}={value} must be a finite number")
            if whole and one is not None and not isinstance(one, numbers.Integral):
                raise ValueError(f"{field.name}={value} must be a whole number")

"""Settings as frozen dataclasses that check themselves."""

import math
import numbers
from dataclasses import fields
from typing import Any, get_args

__all__ = ["check_numbers"]


def check_numbers(settings: Any) -> None:
    """Refuse NaN and infinity in a dataclass's numbers, and fractions where its type says ``int``; None passes.

    Comparisons alone let NaN pass, since each of them is false.

    Raises:
        ValueError: there is one.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        whole = int in (field.type, *get_args(field.type))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name}={value} must be a finite number")
        if whole and value is not None and not isinstance(value, numbers.Integral):
            raise ValueError(f"{field.name}={value} must be a whole number")

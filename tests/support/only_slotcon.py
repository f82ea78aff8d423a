"""A pytest plugin that points timm's own model tests at our models: ``pytest -p only_slotcon test_models.py``."""

from fnmatch import fnmatch
from typing import Any

import timm

import slotcon_hub  # noqa: F401  (registers the models)

_list_models = timm.list_models


def _ours(filter: Any = "", module: Any = "", **kwargs: Any) -> list[str]:
    """timm's listing, of our models alone; the tests that timm keeps to some of its modules count as asked.

    None has weights here, lest timm's test of pretrained models asks the Hub for them.
    """
    if kwargs.get("pretrained"):
        return []
    filters = [filter] if isinstance(filter, str) else filter
    return [name for name in _list_models("slotcon*", **kwargs) if any(not f or fnmatch(name, f) for f in filters)]


timm.list_models = _ours


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Drop the tests that name timm's models one by one."""
    ours = [item for item in items if "slotcon" in item.name]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours

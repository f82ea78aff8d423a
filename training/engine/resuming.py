"""Checks of the settings of a resumed run."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from training.engine.folder import as_json
from training.engine.settings import RunSettings

__all__ = ["Refuse", "check_settings", "list_changes", "resume_config"]

Refuse = Callable[[str, Any, Any], str | None]
"""Maps a setting, its value in the checkpoint and its value now to an error message; None for the default one."""


def resume_config(settings: RunSettings, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and facts of the task that must not change when a run is resumed, as plain values."""
    kept = {key: value for key, value in asdict(settings).items() if key not in settings.RESUMABLE}
    return as_json({**kept, **identity})


def check_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: RunSettings, refuse: Refuse
) -> None:
    """Compare the :func:`resume_config` of a checkpoint with that of this run.

    Args:
        before: of the checkpoint; missing settings, added since, have their defaults.
        now: of this run.
        defaults: settings as they are by default.
        refuse: makes the message for a changed setting.

    Raises:
        ValueError: a setting differs.
    """
    usual = as_json(asdict(defaults))
    for setting, value in now.items():
        then = before.get(setting, usual.get(setting, value))
        if isinstance(value, dict) and isinstance(then, dict):
            known = {**(usual.get(setting) or {}), **then}
            then = {key: known.get(key, part) for key, part in value.items()}
        if then != value:
            raise ValueError(
                refuse(setting, then, value)
                or f"this run has {setting}={then}, not {value}: resume it with the recipe and options it has"
            )


def list_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the differences between the environments of two starts of a run."""
    return [f"{key}={value} instead of {before.get(key)}" for key, value in now.items() if value != before.get(key)]

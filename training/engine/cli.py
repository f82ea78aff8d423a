"""Settings from the command line."""

import functools
import io
import sys
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

import docstring_parser
import tyro

__all__ = ["cli"]

Settings = TypeVar("Settings")


def cli(settings: type[Settings] | Callable[..., Settings], **options: Any) -> Settings:
    """``tyro.cli`` with field docstrings rewrapped, since tyro keeps their line breaks.

    Args:
        settings: a dataclass, or a function with arguments.
        options: of ``tyro.cli``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may not be UTF-8, as on stderr
    _explain(settings)  # type: ignore[arg-type]
    return tyro.cli(settings, **options)


@functools.cache
def _explain(settings: Any) -> None:
    """Attach each field's docstring, as one line, to its type; also for nested dataclasses."""
    for kind in getattr(settings, "__mro__", ()):
        if not is_dataclass(kind):
            continue
        own = typing.get_type_hints(kind, include_extras=True)
        docs = {doc.arg_name: doc.description for doc in docstring_parser.parse_from_object(kind).params}
        for name in {field.name for field in fields(kind)} & {*kind.__annotations__}:
            if text := docs.get(name):
                kind.__annotations__[name] = Annotated[own[name], tyro.conf.arg(help=" ".join(text.split()))]
            inner = typing.get_args(own[name])[:1] or (own[name],)
            if is_dataclass(inner[0]):
                _explain(inner[0])  # type: ignore[arg-type]

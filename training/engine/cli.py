"""Settings from the command line."""

import functools
import io
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

import docstring_parser
import tyro

__all__ = ["cli", "parse_recipe"]

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


def parse_recipe(
    argv: list[str],
    recipes: Mapping[str, tuple[str, Settings]],
    usage: str,
    script: str,
    default: str | None = None,
) -> tuple[str, Settings]:
    """Read the name of a recipe and the options that override it.

    Args:
        argv: the name of a recipe, and options.
        recipes: by name, a description and the settings; these have ``data``, None where it must be given.
        usage: printed before the list of recipes for ``--help``.
        script: its name.
        default: recipe taken if ``argv`` names none.

    Raises:
        ValueError: there is no such recipe, data is missing, or a value is invalid.
    """
    if argv[:1] in (["-h"], ["--help"]):
        print(usage + "".join(f"\n  {name}\n      {text}" for name, (text, _) in recipes.items()))
        raise SystemExit(0)
    names = ", ".join(recipes)
    if not argv or argv[0].startswith("-"):
        if default is None:
            raise ValueError(f"a recipe is missing: name one of {names} first, then --data DIR and other options")
        argv = [default, *argv]
    name, *options = argv
    if name not in recipes:
        raise ValueError(f"there is no recipe {name!r}: choose one of {names}")
    description, settings = recipes[name]
    recipe: Any = cli(
        type(settings), default=settings, args=options, prog=f"{script} {name}", description=description
    )
    if recipe.data is None:
        raise ValueError(f"{name} needs images: add --data DIR. {description}")
    return name, recipe


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

"""Pages and model cards from jinja2's templates: what a template names and nobody gives is an error."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = ["render_template"]


def render_template(template: Path, **values: Any) -> str:
    """Fill a template; in one that ends in ``.html``, texts are escaped.

    Raises:
        jinja2.UndefinedError: it names what is not among the values.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent, encoding="utf-8"),
        undefined=StrictUndefined,
        autoescape=template.suffix == ".html",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)

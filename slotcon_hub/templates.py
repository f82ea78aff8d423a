"""HTML pages and model cards from jinja2 templates."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = ["render_template"]


def render_template(template: Path, **values: Any) -> str:
    """Render a template; values are escaped if its name ends in ``.html``.

    Raises:
        jinja2.UndefinedError: the template uses a name that is not in ``values``.
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

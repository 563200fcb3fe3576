"""Jinja templates of every text that segdeploy generates: HTML pages, scripts, configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segdeploy.models.names import shown


def render(
    template: str, /, *, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any
) -> str:
    """Render `template`; HTML templates escape every value.

    Raises:
        jinja2.UndefinedError: for a value that the template needs and `values` lacks.
    """
    import jinja2

    is_html = template.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=is_html,
        undefined=jinja2.StrictUndefined,
        finalize=shown if is_html else None,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template).render(**values)

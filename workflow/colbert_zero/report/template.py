"""Fill a page of `workflow/report/`: HTML to read offline, in which every name is escaped."""

from __future__ import annotations

from typing import Any

import jinja2

from colbert_zero.graph.paths import WORKFLOW


def fill(template: str, **values: Any) -> str:
    """The page that a template of `workflow/report/` makes of these values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WORKFLOW / "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)

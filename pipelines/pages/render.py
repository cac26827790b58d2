"""HTML pages from `templates/`: one file each, which needs nothing beside it.

What comes from data (task texts, names of cameras and files, errors) reaches a template as plain
text and is escaped there. No template and no code here may declare a string safe.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=PackageLoader("pipelines.pages"),
    # For every template, whatever its name ends in.
    autoescape=True,
    # A name that is missing is an error, not an empty place.
    undefined=StrictUndefined,
    # Lines of template code leave no blank lines in the page.
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Picture:
    """A PNG that lies in the page itself.

    alt: what it shows, for those who do not see it; caption: a line below it, "" for none
    """

    png: bytes
    alt: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """The picture as a `data:` URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of a row names it. An empty header is not drawn."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Tile:
    """One figure that stands out: its value with the unit, what it is, and a line about it."""

    label: str
    value: str
    remark: str = ""


def render(template: str, **context: Any) -> bytes:
    """The page of a template, UTF-8. A name that the template uses must be in `context`.

    File names may hold bytes that are no text (Python keeps them as surrogates): they become `?`.
    """
    return _ENVIRONMENT.get_template(template).render(context).encode("utf-8", "replace")

"""Lines of tables of captions, each by itself: a damaged one costs no other."""

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from gwp.data.formats.files.texts import read_json
from gwp.errors import DataError

NAME_KEYS = ("file_name", "file", "path")
"""Columns that name a video."""
_SEPARATORS = (",", ";", "\t")
_MORE = "has more cells than the first line has columns; put quotes around a text with separators"
_QUOTES = "has a quote that is not closed, or text behind one that is; double those in a text"
_LONGEST = 64
"""Lines of the longest caption."""
_NAMES_A_FILE = re.compile(r"[^,;\t\n]*\.[A-Za-z0-9]{2,4}\"?\s*[,;\t]")
"""How a line begins that is of another video."""

Line = tuple[int, dict[str, Any] | str]
"""Number of a line, and what it says or why that is nothing."""


def json_lines(place: str, text: str) -> Iterator[Line]:  # noqa: ARG001
    """Those of a file of one JSON object a line."""
    # By this character alone: captions may hold what else Python takes for an end of line.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            about = read_json(line)
        except (ValueError, RecursionError):
            about = None
        is_object = isinstance(about, dict)
        yield number, about if is_object else "not a JSON object; write one object per line"


def csv_lines(place: str, text: str) -> Iterator[Line]:
    """Those of a file of separated values, whichever of the usual separators its first line has.
    DataError where that names no videos.
    """
    lines = list(io.StringIO(text, newline=""))
    names, form = _first_line(place, lines[0] if lines else "")
    at = 1
    while at < len(lines):
        cells, count = _record(lines, at, form)
        # Where it ends, as others count.
        number = at + count
        at += count
        if isinstance(cells, str):
            yield number, cells
        elif cells:
            # What stands behind the last column would be cut off.
            row = dict(zip(names, [*cells, *[None] * len(names)], strict=False))
            yield number, row if len(cells) <= len(names) else _MORE


def _record(lines: list[str], at: int, form: dict[str, Any]) -> tuple[list[str] | str, int]:
    """The cells of a row that begins at a line, or why it is none, and how many lines it takes. A
    quote that is not closed would take all that follow: its line is passed over alone.
    """
    reader = csv.reader(islice(lines, at, at + _LONGEST), strict=True, **form)
    try:
        cells = next(reader)
    except (csv.Error, StopIteration):
        return _QUOTES, 1
    inside = lines[at + 1 : at + reader.line_num]
    if any(map(_NAMES_A_FILE.match, inside)):
        return _QUOTES, 1
    return cells, reader.line_num


def _first_line(place: str, line: str) -> tuple[list[str], dict[str, Any]]:
    """Names of the columns, and how cells are told apart."""
    for separator in _SEPARATORS:
        # `file_name, caption`: the space is of no name, and of no cell below.
        form: dict[str, Any] = {"delimiter": separator, "skipinitialspace": f"{separator} " in line}
        try:
            names = [name.strip() for name in next(csv.reader([line], **form), [])]
        except csv.Error as error:
            raise DataError(f"{place}: cannot be read as CSV ({error}); write it again") from error
        # A name alone fits every separator.
        if set(names) & set(NAME_KEYS) and (len(names) > 1 or separator == _SEPARATORS[-1]):
            return names, form
    raise DataError(
        f"{place}: no column {' or '.join(NAME_KEYS)}; write comma-separated values with the "
        "names of the columns in the first line"
    )

"""Texts of files that others wrote, so that every one of them can be written again.

JSON may escape half of a surrogate pair, and h5py gives bytes that are no UTF-8 as such halves:
no file, page or table can hold them.
"""

import json
from typing import Any

REPLACED = "\ufffd"
"""Stands for what is no character."""


def whole_text(text: str) -> str:
    """The text, with halves of surrogate pairs replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def read_json(raw: str | bytes) -> Any:
    """As `json.loads`, with halves of surrogate pairs replaced in all texts and names.

    ValueError, RecursionError as it.
    """
    value = json.loads(raw)
    # Nothing but an escape makes a half.
    if ("\\u" if isinstance(raw, str) else b"\\u") not in raw:  # type: ignore[operator]
        return value
    text = json.dumps(value, ensure_ascii=False)
    whole = whole_text(text)
    return value if whole == text else json.loads(whole)

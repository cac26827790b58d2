"""Several sources together: that no sample is named twice."""

import re
from collections.abc import Sequence

from gwp import storage
from gwp.data.source import Source, parse_ranges
from gwp.errors import DataError

# What of a source does not change which samples it has.
_HOW_OFTEN = {"uri", "weight", "episodes", "format"}


def check_once(sources: Sequence[Source]) -> None:
    """DataError when two sources name the same samples, however their folders are spelt."""
    seen: dict[str, list[Source]] = {}
    for source in sources:
        use = source.model_dump_json(exclude=_HOW_OFTEN)
        # As text, for it holds lists.
        earlier = seen.setdefault(f"{place_of(source.uri)} {use}", [])
        for other in earlier:
            if _share(source, other):
                spelt = "" if source.uri == other.uri else f" (also as {other.uri})"
                raise DataError(
                    f"{source.uri}: the same episodes are named twice{spelt}; name them once, with "
                    "a greater `weight` where they shall count more"
                )
        earlier.append(source)


def place_of(uri: str) -> str:
    """The folder that a URI names, in one spelling."""
    if not storage.is_remote(uri):
        return storage.absolute(uri)
    scheme, _, path = uri.partition("://")
    return f"{scheme}://{re.sub('/+', '/', path).strip('/')}"


def _share(one: Source, other: Source) -> bool:
    """Whether two sources of one set choose some episode both."""
    if one.episodes is None or other.episodes is None:
        return True
    pairs = ((a, b) for a in parse_ranges(one.episodes) for b in parse_ranges(other.episodes))
    return any(max(a.start, b.start) < min(a.stop, b.stop) for a, b in pairs)

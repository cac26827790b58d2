"""Several sources together: that no sample is named twice."""

from collections.abc import Iterable, Iterator, Sequence

from gwp import storage
from gwp.data.formats.files.listing import place_of, places_of
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.ranges import meet, parse_ranges
from gwp.data.source import Source
from gwp.errors import DataError

_HOW_OFTEN = {"uri", "weight", "episodes", "format"}
"""What of a source does not change which samples an episode of it has."""
_CHOICE = _HOW_OFTEN | {"split", "only"}
"""Likewise, with what chooses episodes: where those are known, it tells no more."""
_TWICE = (
    "the same episodes are named twice{}; name them once, with a greater `weight` where they "
    "shall count more"
)

Read = tuple[str, int, str, int]
"""Where an episode or a video is read: file, byte, prefix of its columns, row."""


def episodes_read(data: RobotSet, episodes: Iterable[tuple[Episode, int]]) -> Iterator[Read]:
    """Where episodes of a set are read; with their first rows."""
    for episode, first in episodes:
        yield storage.join(data.uri, episode.data_file), episode.offset, episode.prefix, first


def use_of(source: Source) -> str:
    """What a source makes of an episode that it chooses: two of the same use have the same samples
    of it.
    """
    return source.model_dump_json(exclude=_CHOICE)


class Once:
    """What sources read, whatever folders they name: a file may lie in two of them."""

    def __init__(self) -> None:
        self._readers: dict[tuple[str, Read], str] = {}

    def note(self, source: Source, read: Iterable[Read], use: str | None = None) -> None:
        """Keep what a source reads. DataError where another one reads it for the same use. use: what
        it makes of that; None: what it says of it
        """
        use = use_of(source) if use is None else use
        wanted = list(read)
        places = places_of({file for file, *_ in wanted})
        own: dict[tuple[str, Read], str] = {}
        for file, byte, prefix, row in wanted:
            place = use, (places[file], byte, prefix, row)
            if other := self._readers.get(place):
                twice = _TWICE.format(f" ({file} is read for {other}, too)")
                raise DataError(f"{source.uri}: {twice}")
            own[place] = source.uri
        self._readers |= own


def check_once(sources: Sequence[Source]) -> None:
    """DataError when two sources name the same samples, however their folders are spelt."""
    seen: dict[str, list[Source]] = {}
    for source in sources:
        use = source.model_dump_json(exclude=_HOW_OFTEN)
        # As text, for it holds lists.
        earlier = seen.setdefault(f"{place_of(source.uri)} {use}", [])
        for other in earlier:
            if share_episodes(source, other):
                spelt = "" if source.uri == other.uri else f" (also as {other.uri})"
                raise DataError(f"{source.uri}: {_TWICE.format(spelt)}")
        earlier.append(source)


def share_episodes(one: Source, other: Source) -> bool:
    """Whether two sources of one set choose some number of an episode both."""
    if one.episodes is None or other.episodes is None:
        return True
    own = parse_ranges(one.episodes, open_ended=True)
    others = parse_ranges(other.episodes, open_ended=True)
    return any(meet(a, b) for a in own for b in others)

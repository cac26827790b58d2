"""Where the list of episodes says that their rows are, compared with how many they have."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gwp.data.formats.finding import Finding
from gwp.data.formats.lerobot.numbers import count_or_none
from gwp.data.formats.robot_set import Episode
from gwp.storage.names import shown_all

_FROM, _TO = "dataset_from_index", "dataset_to_index"


def check_indices(
    rows: Mapping[int, Mapping[str, Any]], episodes: Iterable[Episode], where: str
) -> Iterator[Finding]:
    """A finding where `dataset_from_index` and `dataset_to_index` are not what the lengths of the
    episodes give. Rows are found without them. rows: of the list, by episode
    """
    wrong: list[str] = []
    before = 0
    # A part of a larger set may begin anywhere.
    offset: int | None = None
    for episode in sorted(episodes, key=lambda e: e.index):
        row = rows.get(episode.index, {})
        begin, end = count_or_none(row.get(_FROM)), count_or_none(row.get(_TO))
        if begin is not None:
            offset = begin - before if offset is None else offset
            length = episode.length if end is None else end - begin
            if begin - before != offset or length != episode.length:
                wrong.append(str(episode.index))
        before += episode.length
    if wrong:
        what = f"{_FROM} of episodes {shown_all(wrong)} is not where their lengths put them"
        advice = "their rows are found by episode_index and by counting; correct it"
        yield Finding(where, what, "ignored", advice)

"""What a set of a study is to those who read it: a source, of which stages may see a part."""

import sys
from heapq import merge
from itertools import groupby, islice

from gwp.data.ranges import as_ranges, parse_ranges
from gwp.data.source import Source
from pipelines.studies.cells.hashes import place_of
from pipelines.studies.document.study import Study

Key = tuple[str, str | None, str | None]
"""Place, and of recordings that were there already the episodes and the split."""


def source_of(study: Study, common: str, name: str) -> Source:
    """All of a set. common: folder of what the studies of one storage share"""
    one = study.data[name]
    return one if isinstance(one, Source) else Source(uri=place_of(study, common, name))


def placed(study: Study, common: str, source: Source, count: int | None) -> Source:
    """A source of a stage as the study reads it: of the set that its last folder names, else as it
    is. What it says beside `uri` counts before what the set says.

    count: demonstrations, of the labelled set; None: all. ValueError where both choose episodes
    """
    name = source.uri.rstrip("/").rpartition("/")[2]
    one = study.data.get(name)
    if one is None:
        return source
    some = count if name == study.labelled else None
    if isinstance(one, Source):
        if source.episodes is not None:
            raise ValueError(f"data.{name} chooses episodes; leave {source.episodes!r} out")
        said = {field: getattr(source, field) for field in source.model_fields_set - {"uri"}}
        episodes = one.episodes if some is None else first(one.episodes, some)
        return one.model_copy(update=said | {"episodes": episodes})
    update = {"uri": place_of(study, common, name)}
    if some is not None:
        # Tasks alternate in a set, so that the first episodes hold as many of each.
        update["episodes"] = f"0:{some * len(one.tasks)}"
    return source.model_copy(update=update)


def first(episodes: str | None, count: int) -> str:
    """The first so many numbers of a selection, as another one."""
    parts = [range(sys.maxsize)] if episodes is None else parse_ranges(episodes, open_ended=True)
    numbers = (number for number, _ in groupby(merge(*parts)))
    return as_ranges(islice(numbers, count))


def uncut(study: Study, source: Source) -> Source:
    """A source of a job with all demonstrations where it sees some. Of a set that is recorded for
    the study, all episodes.
    """
    there = [one for one in study.data.values() if isinstance(one, Source)]
    if not any(one.uri == source.uri for one in there):
        return source.model_copy(update={"episodes": None})
    labelled = study.data[study.labelled]
    if not isinstance(labelled, Source) or labelled.uri != source.uri:
        return source
    cuts = {first(labelled.episodes, count) for count in study.demonstrations}
    if source.episodes not in cuts:
        return source
    return source.model_copy(update={"episodes": labelled.episodes})


def key(study: Study, source: Source) -> Key:
    """Which set a source of a job is of: two of the same set have the same one."""
    there = any(isinstance(one, Source) and one.uri == source.uri for one in study.data.values())
    if not there:
        return source.uri, None, None
    whole = uncut(study, source)
    return whole.uri, whole.episodes, whole.split

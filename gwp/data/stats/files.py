"""Files of statistics: ours and the published form, openpi's, and whether one may serve a run.

Ours is the published form, `{"norm_stats": {"observation.state": S, "action": S}}` with
`metadata`; openpi's is `{"norm_stats": {"state": S, "actions": S}}` at the robot's own widths,
without extremes and without the rule.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from gwp import storage
from gwp.data.embodiment import Embodiment
from gwp.data.formats.find import robots_at
from gwp.data.formats.reader import FileReader
from gwp.data.formats.robot_set import ACTION, STATE
from gwp.data.source import Source, parse_ranges
from gwp.data.stats.normalise import FeatureStats, Stats, rule
from gwp.data.window import Window
from gwp.errors import DataError

_OPENPI = {STATE: "state", ACTION: "actions"}
_OTHER = "`stats_of_other_data: true` on the robot accepts it all the same"


def read_stats_file(uri: str, robot: str | None = None) -> Stats:
    """Statistics in a file of either form, or those of `robot` in a file of several robots
    (stats.json of a run or a bundle).

    What is not ours says in metadata, under `imported`, where it came from. DataError when the
    file is something else.
    """
    raw = storage.read_bytes(uri)
    try:
        given = json.loads(raw)
    except ValueError as error:
        raise DataError(f"{uri}: not statistics: no JSON ({error})") from error
    if (
        isinstance(given, dict)
        and "norm_stats" not in given
        and any(_keys(part) for part in given.values())
    ):
        if robot not in given:
            raise DataError(
                f"{uri}: holds statistics of {', '.join(given)}, none of "
                f"{robot or 'a robot that is named'}; give another file"
            )
        given = given[robot]
    try:
        return _read(
            given,
            {"file": uri.rstrip("/").rpartition("/")[2], "sha256": hashlib.sha256(raw).hexdigest()},
        )
    except DataError as error:
        raise DataError(f"{uri}: {error}") from error


def _keys(given: Any) -> set[str]:
    norm = given.get("norm_stats") if isinstance(given, dict) else None
    return set(norm) if isinstance(norm, dict) else set()


def _read(given: Any, place: dict[str, str]) -> Stats:
    keys = _keys(given)
    if {STATE, ACTION} <= keys:
        stats = Stats.from_json(given)
        metadata, form = stats.metadata, "published"
        if "state_names" in metadata:
            return stats
        features = {key: given["norm_stats"][key] for key in (STATE, ACTION)}
    elif set(_OPENPI.values()) <= keys:
        form, features = (
            "openpi",
            {ours: given["norm_stats"][theirs] for ours, theirs in _OPENPI.items()},
        )
        if any(
            isinstance(f, dict) and (f.get("q01") is None or f.get("q99") is None)
            for f in features.values()
        ):
            raise DataError(
                "openpi statistics without quantiles (q01, q99); compute them anew with `gwp "
                "data stats`"
            )
        stats = Stats.from_json({"norm_stats": features})
        metadata = {}
    else:
        raise DataError(
            f"not statistics: norm_stats with {STATE} and {ACTION} (ours, published) or state "
            "and actions (openpi) is expected, "
            f"there is {', '.join(sorted(keys)) or 'no norm_stats'}"
        )
    extremes = (
        "of the file"
        if all("min" in f and "max" in f for f in features.values())
        else "absent; q01 and q99 stand in"
    )
    about = {
        "imported": {"form": form, **place, "min_max": extremes, "rule": "not stated by the file"}
    }
    return Stats(stats.state, stats.action, metadata | about)


def import_stats(uri: str, embodiment: Embodiment) -> Stats:
    """Statistics that someone else computed, as ours, under the rule of `embodiment`: its word
    is taken for what the file leaves open.

    DataError when the widths do not fit, or the file states another horizon or mask.
    """
    stats = _fitting(read_stats_file(uri, embodiment.name), uri, embodiment, None)
    about = stats.metadata.get("imported")
    if about is None:
        return stats
    theirs = {k: v for k, v in stats.metadata.items() if k != "imported"}
    about = about | {"rule": "as its importer stated it"} | ({"metadata": theirs} if theirs else {})
    return Stats(
        stats.state,
        stats.action,
        {"embodiment": embodiment.name} | rule(embodiment, embodiment.chunk) | {"imported": about},
    )


def _fitting(stats: Stats, uri: str, embodiment: Embodiment, window: Window | None) -> Stats:
    """Checked against the robot and cut to its widths."""
    try:
        stats.check(embodiment, window)
    except DataError as error:
        raise DataError(f"{uri}: {error}") from error
    if "state_names" not in stats.metadata and stats.metadata["imported"]["form"] == "openpi":
        # These are not padded, so more dimensions are those of another robot.
        names = (
            (stats.state, embodiment.state_names, "state"),
            (stats.action, embodiment.action_names, "action"),
        )
        for found, ours, what in names:
            if len(found.mean) != len(ours):
                raise DataError(
                    f"{uri}: {len(found.mean)} {what} dimensions, embodiment {embodiment.name} "
                    f"has {len(ours)}; "
                    "give the file of this robot"
                )
    return stats.cut(embodiment)


def to_openpi(stats: Stats) -> dict[str, Any]:
    """openpi's norm_stats.json, which has no place for the rule."""

    def plain(found: FeatureStats) -> dict[str, list[float]]:
        return {key: getattr(found, key).tolist() for key in ("mean", "std", "q01", "q99")}

    return {
        "norm_stats": {_OPENPI[STATE]: plain(stats.state), _OPENPI[ACTION]: plain(stats.action)}
    }


def stats_for(
    uri: str,
    embodiment: Embodiment,
    window: Window,
    sources: Sequence[Source],
    other_data: bool = False,
    reader: FileReader | None = None,
) -> Stats:
    """Statistics of a file for a run of this robot over labelled `sources`.

    DataError when they were computed under another rule or, unless `other_data`, on data that
    do not cover the sources. `reader`: keeps what is read of files; None: one for this call.
    """
    stats = _fitting(read_stats_file(uri, embodiment.name), uri, embodiment, window)
    if other_data:
        return Stats(stats.state, stats.action, stats.metadata | {"of_other_data": True})
    _check_cover(stats, uri, sources, reader or FileReader())
    return stats


def _check_cover(stats: Stats, uri: str, sources: Sequence[Source], reader: FileReader) -> None:
    covered: dict[str, set[int]] = {}
    try:
        for entry in stats.metadata.get("datasets") or []:
            known = covered.setdefault(entry["fingerprint"], set())
            known.update(i for part in parse_ranges(entry["episodes"]) for i in part)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{uri}: cannot read which data these statistics are of ({error}); run `gwp data "
            "stats` again"
        ) from error
    if not covered:
        raise DataError(
            f"{uri}: does not say which data it was computed on; compute it with `gwp data "
            f"stats`, or {_OTHER}"
        )
    for source in sources:
        data = robots_at(source, reader)
        if data is None:
            continue
        if data.fingerprint not in covered:
            raise DataError(
                f"{uri}: not computed on {source.uri} ({data.fingerprint}), only on "
                f"{', '.join(covered)}; run `gwp data stats` "
                f"over all sets of this robot, or {_OTHER}"
            )
        lacking = [
            i
            for i in source.select([e.index for e in data.episodes])
            if i not in covered[data.fingerprint]
        ]
        if lacking:
            raise DataError(
                f"{uri}: computed without {len(lacking)} episodes of {source.uri} that are "
                f"trained on, from {lacking[0]}; "
                f"run `gwp data stats` with those, or {_OTHER}"
            )

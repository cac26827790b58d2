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
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.robot_set import ACTION, STATE
from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source, parse_ranges
from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.normalise import RANGES, Stats, rule
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
        content = json.loads(raw)
    except ValueError as error:
        raise DataError(f"{uri}: not statistics: no JSON ({error})") from error
    # Several robots in one file: a map of names around the form itself.
    if (
        isinstance(content, dict)
        and "norm_stats" not in content
        and any(_keys(part) for part in content.values())
    ):
        if robot not in content:
            raise DataError(
                f"{uri}: holds statistics of {', '.join(content)}, none of "
                f"{robot or 'a robot that is named'}; give another file"
            )
        content = content[robot]
    file_name = uri.rstrip("/").rpartition("/")[2]
    origin = {"file": file_name, "sha256": hashlib.sha256(raw).hexdigest()}
    try:
        return _read(content, origin)
    except DataError as error:
        raise DataError(f"{uri}: {error}") from error


def _keys(content: Any) -> set[str]:
    norm = content.get("norm_stats") if isinstance(content, dict) else None
    return set(norm) if isinstance(norm, dict) else set()


def _read(content: Any, origin: dict[str, str]) -> Stats:
    """Statistics of one robot. origin: `file` and `sha256`, for metadata that say it"""
    keys = _keys(content)
    if {STATE, ACTION} <= keys:
        form = "published"
        stats = Stats.from_json(content)
        metadata = stats.metadata
        # Only ours name the entries of the state.
        if "state_names" in metadata:
            return stats
        features = {key: content["norm_stats"][key] for key in (STATE, ACTION)}
    elif set(_OPENPI.values()) <= keys:
        form = "openpi"
        features = {ours: content["norm_stats"][theirs] for ours, theirs in _OPENPI.items()}
        # Its file has room for them, and null where they were not computed.
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
    # `FeatureStats` has both anyway; what they are is noted for whoever reads the bundle.
    extremes = (
        "of the file"
        if all("min" in f and "max" in f for f in features.values())
        else "absent; q01 and q99 stand in"
    )
    imported = {"form": form, **origin, "min_max": extremes, "rule": "not stated by the file"}
    return Stats(stats.state, stats.action, metadata | {"imported": imported})


def import_stats(uri: str, embodiment: Embodiment) -> Stats:
    """Statistics that someone else computed, as ours, under the rule of `embodiment`: its word
    is taken for what the file leaves open.

    DataError when the widths do not fit, or the file states another horizon or mask.
    """
    stats = _fitting(read_stats_file(uri, embodiment.name), uri, embodiment, None)
    imported = stats.metadata.get("imported")
    # A file of ours states its whole rule itself.
    if imported is None:
        return stats
    # What the file said goes below `imported`: from now on ours is the rule that counts.
    theirs = {k: v for k, v in stats.metadata.items() if k != "imported"}
    imported = imported | {"rule": "as its importer stated it"}
    if theirs:
        imported |= {"metadata": theirs}
    metadata = {"embodiment": embodiment.name} | rule(embodiment, embodiment.chunk)
    # No part of the rule that they were computed under, but of how they are used.
    if RANGES in stats.metadata:
        metadata[RANGES] = stats.metadata[RANGES]
    return Stats(stats.state, stats.action, metadata | {"imported": imported})


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
        for feature, ours, what in names:
            # `check` has refused fewer; this refuses more.
            if len(feature.mean) != len(ours):
                raise DataError(
                    f"{uri}: {len(feature.mean)} {what} dimensions, embodiment {embodiment.name} "
                    f"has {len(ours)}; "
                    "give the file of this robot"
                )
    return stats.cut(embodiment)


def to_openpi(stats: Stats) -> dict[str, Any]:
    """openpi's norm_stats.json, which has no place for the rule."""

    def plain(feature: FeatureStats) -> dict[str, list[float]]:
        return {key: getattr(feature, key).tolist() for key in ("mean", "std", "q01", "q99")}

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
        # Noted, for these metadata go into the bundle.
        return Stats(stats.state, stats.action, stats.metadata | {"of_other_data": True})
    _check_cover(stats, uri, sources, reader or FileReader())
    return stats


def _check_cover(stats: Stats, uri: str, sources: Sequence[Source], reader: FileReader) -> None:
    # Fingerprint of a set -> its episodes that the statistics were computed on.
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
        # Plain videos have no vectors.
        if data is None:
            continue
        if data.fingerprint not in covered:
            raise DataError(
                f"{uri}: not computed on {source.uri} ({data.fingerprint}), only on "
                f"{', '.join(covered)}; run `gwp data stats` "
                f"over all sets of this robot, or {_OTHER}"
            )
        known = covered[data.fingerprint]
        # Unusable ones are among both: `compute_stats` lists every episode that it was given.
        chosen = source.select([e.index for e in data.episodes])
        if source.only is not None:
            good, bad = usable_episodes(data, source, [], reader)
            chosen = [episode.index for episode, _ in [*good, *bad]]
        lacking = [index for index in chosen if index not in known]
        if lacking:
            raise DataError(
                f"{uri}: computed without {len(lacking)} episodes of {source.uri} that are "
                f"trained on, from {lacking[0]}; "
                f"run `gwp data stats` with those, or {_OTHER}"
            )

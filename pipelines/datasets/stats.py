"""What `gwp data stats` does."""

import argparse
import json
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.canvas import SLOTS
from gwp.data.formats.cameras import colour_cameras, default_slots
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.robot_set import RobotSet, embodiment_of
from gwp.data.plan.doubts import angle_doubts
from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import parse_ranges
from gwp.data.sources import check_once
from gwp.data.stats.files import import_stats, to_openpi
from gwp.data.stats.normalise import Stats, compute_stats
from gwp.data.window import Window
from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.config.source import source_of
from pipelines.console import event, table


def write_stats(args: argparse.Namespace) -> None:
    """Compute or import, and write, the statistics that the options of `gwp data stats` ask
    for.
    """
    if args.form == "openpi" and args.width:
        raise GwpError("--width pads the published form; openpi's files are not padded")
    embodiment, stats = _imported(args) if args.given else _computed(args)
    # openpi's form has no room for the rule that the statistics were computed under.
    document = to_openpi(stats) if args.form == "openpi" else stats.to_json(args.width)
    storage.write_bytes(args.out, (json.dumps(document, indent=1) + "\n").encode())
    # Warnings go to stderr, the table to stdout.
    _warn(embodiment, stats.metadata)
    counts = {
        "num_episodes": "episodes",
        "num_state_samples": "states",
        "num_windows_left_out": "windows left out",
    }
    # The statistics of another program count less than ours.
    row = {name: stats.metadata[key] for key, name in counts.items() if key in stats.metadata}
    print(table([{"written": args.out} | row]))
    features = (
        (stats.state, embodiment.state_names, "state"),
        (stats.action, embodiment.action_names, "action"),
    )
    for feature, names, kind in features:
        constant = [names[i] for i in np.flatnonzero(feature.constant)]
        if constant:
            print(f"constant {kind}: {', '.join(constant)}")


def _warn(embodiment: Embodiment, metadata: dict[str, Any]) -> None:
    """Events for what may be meant, and mostly is not. metadata: of the statistics."""
    # A robot may have more actions than states, or fewer: pairs end with the shorter.
    names = zip(embodiment.action_names, embodiment.state_names, embodiment.delta, strict=False)
    pairs = [f"{action} - {state}" for action, state, delta in names if delta and action != state]
    if pairs:
        event(
            "warning",
            text="delta subtracts a state of another name; check that it is the same quantity",
            pairs=", ".join(pairs),
        )
    datasets = metadata.get("datasets", [])
    unusable = ", ".join(d["unusable_episodes"] for d in datasets if d["unusable_episodes"])
    if unusable:
        event(
            "warning",
            text="episodes that cannot be used do not count; `gwp data inspect` tells why",
            episodes=unusable,
        )


def _computed(args: argparse.Namespace) -> tuple[Embodiment, Stats]:
    if not args.uris:
        raise GwpError("give the sets of the robot, or --import FILE")
    reader = FileReader()
    embodiment = _embodiment(args, reader)
    chunk = args.chunk or embodiment.chunk
    if chunk % 4:
        raise GwpError(
            f"--chunk {chunk}: the frames of a chunk must be 4n+1, so give a multiple of 4"
        )
    embodiment = embodiment.model_copy(update={"chunk": chunk})
    sources = [
        source_of(args, uri, embodiment=embodiment.name, episodes=args.episodes)
        for uri in args.uris
    ]
    check_once(sources)
    # The stride plays no part in statistics; a quarter of a chunk is one that fits.
    stats = compute_stats(sources, embodiment, Window(chunk=chunk, stride=chunk // 4), reader)
    for source in sources:
        if (data := robots_at(source, reader)) is not None:
            good, _ = usable_episodes(data, source, [], reader)
            for text in angle_doubts(data, good, embodiment, reader):
                event("warning", text=f"{source.uri}: {text}")
    return embodiment, stats


def _imported(args: argparse.Namespace) -> tuple[Embodiment, Stats]:
    if args.uris or args.episodes or args.delta:
        raise GwpError(
            "--import takes the numbers of a file; leave out sets, --episodes and --delta"
        )
    if not args.embodiment:
        raise GwpError(
            "--import needs --embodiment FILE: the rule that the statistics were computed "
            "under is not in every file"
        )
    embodiment = load_config(args.embodiment, Embodiment)
    embodiment = embodiment.model_copy(update={"chunk": args.chunk or embodiment.chunk})
    return embodiment, import_stats(args.given, embodiment)


def _embodiment(args: argparse.Namespace, reader: FileReader) -> Embodiment:
    if args.embodiment:
        if args.delta:
            raise GwpError(
                "--delta and --embodiment both say which actions are relative; put delta_mask "
                "into the file"
            )
        return load_config(args.embodiment, Embodiment)
    if not args.chunk:
        raise GwpError("give --chunk P, or --embodiment FILE with its chunk")
    # Without a file the first set describes the robot, and --delta the relative actions.
    data = _robots(args, reader)
    width = len(data.action_names)
    try:
        chosen = {i for part in parse_ranges(args.delta) for i in part} if args.delta else set()
    except ValueError as error:
        raise GwpError(f"--delta: {error}") from error
    if chosen and max(chosen) >= width:
        raise GwpError(
            f"--delta {args.delta}: {args.uris[0]} has {width} actions, 0 to {width - 1}"
        )
    mask = tuple(i in chosen for i in range(width))
    # Episodes that lack a picture train nothing, so the cameras count; replan plays no part.
    cameras = default_slots(data.cameras)
    if len(colour_cameras(data.cameras)) > len(SLOTS):
        cameras = {}
        event(
            "warning",
            text="episodes that lack pictures count too: which cameras train is not known; name "
            "them in --embodiment FILE",
            cameras=", ".join(data.cameras),
        )
    return embodiment_of(data, args.name, args.chunk, args.chunk, cameras=cameras, delta_mask=mask)


def _robots(args: argparse.Namespace, reader: FileReader) -> RobotSet:
    data = robots_at(source_of(args, args.uris[0]), reader)
    if data is None:
        raise GwpError(
            f"{args.uris[0]}: no robot set there (plain videos have no state and action); check the URI"
        )
    return data

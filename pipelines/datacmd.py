"""What `gwp data stats` does."""

import argparse
import json

from gwp import storage
from gwp.data.embodiment import Embodiment
from gwp.data.lerobot import infer_embodiment, read_set
from gwp.data.source import Source, parse_ranges
from gwp.data.stats import compute_stats
from gwp.data.window import Window
from gwp.errors import GwpError
from pipelines.config import load_config
from pipelines.console import event, table


def write_stats(args: argparse.Namespace) -> None:
    """Compute and write the statistics that the options of `gwp data stats` ask for."""
    embodiment = _embodiment(args)
    chunk = args.chunk or embodiment.chunk
    if chunk % 4:
        raise GwpError(f"--chunk {chunk}: the frames of a chunk must be 4n+1, so give a multiple of 4")
    embodiment = embodiment.model_copy(update={"chunk": chunk})
    sources = [Source(uri=uri, format="lerobot", embodiment=embodiment.name, episodes=args.episodes) for uri in args.uris]
    stats = compute_stats(sources, embodiment, Window(chunk=chunk, stride=chunk // 4))
    found = stats.to_json()
    storage.write_bytes(args.out, (json.dumps(found, indent=1) + "\n").encode())
    mask = embodiment.delta
    apart = [
        f"{a} - {s}" for a, s, d in zip(embodiment.action_names, embodiment.state_names, mask, strict=False) if d and a != s
    ]
    if apart:
        event("warning", text="delta subtracts a state of another name; check that it is the same quantity", pairs=", ".join(apart))
    still = {what: [names[i] for i in found["norm_stats"][key]["constant"]] for what, key, names in (
        ("state", "observation.state", embodiment.state_names), ("action", "action", embodiment.action_names))}
    print(table([{
        "written": args.out, "episodes": found["metadata"]["num_episodes"], "states": found["metadata"]["num_state_samples"],
        "windows left out": found["metadata"]["num_windows_left_out"],
    }]))
    for what, names in still.items():
        if names:
            print(f"constant {what}: {', '.join(names)}")


def _embodiment(args: argparse.Namespace) -> Embodiment:
    if args.embodiment:
        if args.delta:
            raise GwpError("--delta and --embodiment both say which actions are relative; put delta_mask into the file")
        return load_config(args.embodiment, Embodiment)
    if not args.chunk:
        raise GwpError("give --chunk P, or --embodiment FILE with its chunk")
    width = len(read_set(args.uris[0]).action_names)
    try:
        chosen = {i for part in parse_ranges(args.delta) for i in part} if args.delta else set()
    except ValueError as error:
        raise GwpError(f"--delta: {error}") from error
    if chosen and max(chosen) >= width:
        raise GwpError(f"--delta {args.delta}: {args.uris[0]} has {width} actions, 0 to {width - 1}")
    mask = tuple(i in chosen for i in range(width))
    return infer_embodiment(args.uris[0], args.name, args.chunk, args.chunk, cameras={}, delta_mask=mask)

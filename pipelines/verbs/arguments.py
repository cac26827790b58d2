"""Kinds of arguments that several verbs take."""

import argparse

from gwp.sim.benchmarks import BENCHMARKS, DEFAULT


def add_visibility(verb: argparse.ArgumentParser, more: str) -> None:
    """`--visibility` of a verb that measures. more: what it says of models that are not
    action-centred
    """
    verb.add_argument(
        "--visibility",
        choices=("action-centred", "joint", "video-first", "latent-frame"),
        default="action-centred",
        help=f"which tokens see which; {more}; latent-frame: joint, and states and actions are "
        "further latent frames, in a model of family gwp0 (default: action-centred)",
    )


def numbers(text: str) -> list[int]:
    """Whole numbers from 1, separated by commas."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give numbers from 1, such as 1,4,16")
    return values


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """`--benchmark`, the simulator that a verb runs."""
    parser.add_argument(
        "--benchmark",
        choices=tuple(BENCHMARKS),
        default=DEFAULT,
        help=f"the simulator (default: {DEFAULT})",
    )

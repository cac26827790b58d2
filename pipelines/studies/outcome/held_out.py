"""Held-out episodes one by one: in which of them the error of a policy, on average over seeds, is
below that of holding still and of the mean action.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Judged = Mapping[str, Any]
_GUESSES = ("groups", "hold", "baseline")


def by_episode(found: Mapping[int, Judged]) -> dict[str, Any] | None:
    """What open loop says of each episode. found: seed -> result; None where a result, of an earlier
    version, does not say which episodes it is of

    mse, share: by the squared error, and by the error as a share of each range
        below:     in how many of them the error of the policy, its mean over seeds, is below both
        not_below: numbers of the others
        by_seed:   in how many of them each seed is below both
        errors:    number -> {policy, hold, mean}, means over seeds
    """
    if not all("episodes" in result for result in found.values()):
        return None
    shares = {
        seed: result["share"] | {"episodes": result["episodes"]} for seed, result in found.items()
    }
    return {"mse": _measure(found), "share": _measure(shares)}


def _measure(found: Mapping[int, Judged]) -> dict[str, Any]:
    seeds = {seed: _errors(result) for seed, result in found.items()}
    numbers = sorted({number for errors in seeds.values() for number in errors})
    means = {
        number: np.mean([errors[number] for errors in seeds.values() if number in errors], axis=0)
        for number in numbers
    }
    not_below = [number for number in numbers if not _below(means[number])]
    return {
        "below": len(numbers) - len(not_below),
        "not_below": not_below,
        "by_seed": {seed: sum(map(_below, errors.values())) for seed, errors in seeds.items()},
        "errors": {
            number: dict(zip(("policy", "hold", "mean"), map(float, means[number]), strict=True))
            for number in numbers
        },
    }


def _errors(result: Judged) -> dict[int, Sequence[float]]:
    """Number of an episode -> errors of the policy, of holding still and of the mean."""
    found: dict[int, Sequence[float]] = {}
    for text, numbers in result["episodes"].items():
        guesses = zip(*(result[guess][text] for guess in _GUESSES), strict=True)
        found |= dict(zip(numbers, guesses, strict=True))
    return found


def _below(errors: Sequence[float]) -> bool:
    policy, hold, mean = errors
    return bool(policy < min(hold, mean))


def episode_rows(figures: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """One for each arm, number of demonstrations and judgement that knows its episodes."""
    for row in figures["rows"]:
        for name, figure in row["judged"].items():
            if (episodes := figure.get("by_episode")) is None:
                continue
            found = episodes["mse"]
            of, seeds = len(found["errors"]), found["by_seed"].values()
            yield {
                "arm": row["arm"],
                "demonstrations": told_count(row["demonstrations"]),
                "judgement": name,
                "below both": f"{found['below']} of {of}",
                "not in": ", ".join(map(str, found["not_below"])) or "none",
                "each seed alone": ", ".join(map(str, seeds)),
            }


def told_count(demonstrations: int | None) -> str:
    """A number of demonstrations in words."""
    return "all" if demonstrations is None else str(demonstrations)

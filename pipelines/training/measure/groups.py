"""Losses by mode, source of data and noise level: which part of a mixture learns, and which not.

They are those of the samples since the last logging, of all ranks, as the objective weighs them.
What a step adds stays on the device until it is asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gwp.model.draws import Levels
from gwp.model.objective import Losses, ObjectiveConfig

MODES = ("video", "ac_wm", "wam")
BUCKETS = 5
"""Of noise levels, all of one width between 0 and 1."""
_SUMS = 4  # errors and counts of actions, errors and counts of videos


@dataclass(frozen=True)
class _Part:
    """What a micro-batch adds; arrays and tensors of one value per sample."""

    mode: np.ndarray
    source: np.ndarray
    noise: np.ndarray
    """Buckets `[2, n]`: of actions, of the future."""
    action: Tensor | None
    video: Tensor | None
    counts: Tensor
    """`[2, n]`: numbers of actions that are learnt; 1 where the video is."""


class GroupedLosses:
    """Of one rank; the step adds to it, and the loop asks for it when it logs."""

    def __init__(self, objective: ObjectiveConfig, sources: Sequence[str]) -> None:
        """sources: names of the entries of the mixture, each once"""
        self._objective = objective
        self._names = (
            [f"loss/mode/{name}" for name in MODES],
            [f"loss/source/{name}" for name in sources],
            [f"loss/noise/action/{k / BUCKETS:g}" for k in range(BUCKETS)],
            [f"loss/noise/video/{k / BUCKETS:g}" for k in range(BUCKETS)],
        )
        self._parts: list[_Part] = []

    def add(self, losses: Losses, levels: Levels, source: np.ndarray) -> None:
        """A micro-batch. source: int `[n]`, number of each sample's entry; -1: none"""
        given = ~levels.learnt.any(1)
        mode = np.where(given.numpy(), MODES.index("ac_wm"), MODES.index("wam"))
        alone = levels.video_only.numpy() if losses.action_each is not None else slice(None)
        mode[alone] = MODES.index("video")
        # Of actions that are given the level is 0; the others of a sample have one.
        sigma = torch.stack([levels.action.amax(1), levels.future])
        noise = (sigma * BUCKETS).long().clamp(0, BUCKETS - 1).numpy()
        self._parts.append(
            _Part(mode, source, noise, losses.action_each, losses.video_each, losses.counts_each)
        )

    @property
    def length(self) -> int:
        """Of `sums`, the same on every rank."""
        return _SUMS * sum(map(len, self._names))

    def sums(self) -> list[float]:
        """What ranks add up, of the samples since the last call."""
        parts, self._parts = self._parts, []
        totals = [np.zeros((_SUMS, len(names))) for names in self._names]
        for part in parts:
            n = len(part.mode)
            counts = part.counts.double().cpu().numpy()
            rows = np.zeros((_SUMS, n))
            for k, errors in enumerate((part.action, part.video)):
                if errors is not None:
                    values = errors.double().cpu().numpy()
                    # A step without a finite loss was not taken.
                    known = np.isfinite(values)
                    rows[2 * k] = np.where(known, values, 0.0)
                    rows[2 * k + 1] = np.where(known, counts[k], 0.0)
            source = np.where(part.source < 0, len(self._names[1]), part.source)
            for total, of, which in zip(
                totals,
                (part.mode, source, part.noise[0], part.noise[1]),
                ((0, 1, 2, 3), (0, 1, 2, 3), (0, 1), (2, 3)),
                strict=True,
            ):
                length = total.shape[1]
                for row in which:
                    total[row] += np.bincount(of, rows[row], length + 1)[:length]
        return [float(value) for total in totals for value in total.ravel()]

    def told(self, sums: Sequence[float]) -> dict[str, float]:
        """Name -> loss, of groups that had samples. sums: of all ranks"""
        objective, found, at = self._objective, {}, 0
        # By noise the parts as they are; elsewhere as they are weighed.
        weights = [(objective.action_weight, objective.video_weight)] * 2 + [(1.0, 0.0), (0.0, 1.0)]
        for names, (of_action, of_video) in zip(self._names, weights, strict=True):
            table = np.reshape(sums[at : at + _SUMS * len(names)], (_SUMS, len(names)))
            at += table.size
            for name, (action, learnt, video, seen) in zip(names, table.T, strict=True):
                value = 0.0
                if learnt and of_action:
                    value += of_action * action / learnt
                if seen and of_video:
                    value += of_video * video / seen
                if (learnt and of_action) or (seen and of_video):
                    found[name] = value
        return {name: value for name, value in found.items() if math.isfinite(value)}


def source_names(uris: Sequence[str]) -> list[str]:
    """A short name of each entry of a mixture, each once: the end of its URI, in letters that
    MLflow takes.
    """
    found: list[str] = []
    for number, uri in enumerate(uris):
        end = uri.rstrip("/").rpartition("/")[2]
        name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in end)
        name = name[:60].strip(".") or "data"
        found.append(name if name not in found else f"{name}-{number}")
    return found

"""Imagined against recorded frames: how well a policy's model foresees what its actions do."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from gwp.data.canvas import compose
from gwp.data.source import Source
from gwp.errors import DataError
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation
from pipelines.console import event
from pipelines.evaluation.recordings import NO_WINDOW, RecordedSet, Recording
from pipelines.frames import error_sums, told


@dataclass(frozen=True)
class Clip:
    """One window of a recording, and what the model imagined of it; from `imagined`.

    title:    text, episode and step
    text:     the instruction
    real:     canvas frames uint8 `[T, H, W, 3]`; the first was given to the model
    guess:    imagined under the recorded actions, of the same shape
    shuffled: imagined under the actions of another clip; None: not asked for
    """

    title: str
    text: str
    episode: int
    step: int
    real: np.ndarray = field(repr=False)
    guess: np.ndarray = field(repr=False)
    shuffled: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Window:
    """What a clip is made of. actions: `[p, d]`, robot units."""

    title: str
    text: str
    episode: int
    step: int
    real: np.ndarray
    observation: Observation
    actions: np.ndarray


def imagined(
    policy: Policy, source: Source, clips: int = 3, *, shuffled: bool = False
) -> list[Clip]:
    """Windows of the recordings as the model imagines them, given the recorded actions: one of
    each instruction before a second of any, and those of one episode evenly spread over it.

    shuffled: imagine each under the actions of another one, too, with the same noise. DataError
    where there is no window.
    """
    recorded = RecordedSet.of(policy.bundle.embodiments, source)
    windows = list(islice(_windows(policy, recorded, clips), clips))
    if not windows and clips:
        raise DataError(f"{source.uri}: {NO_WINDOW}")
    result = []
    for i, window in enumerate(windows):
        other = _of_another(windows, i)
        under_other = None
        if shuffled and len(windows) > 1:
            under_other = policy.imagine_given(
                window.observation, other.actions, counted_from=other.observation
            )
        guess = policy.imagine_given(window.observation, window.actions)
        result.append(
            Clip(
                window.title,
                window.text,
                window.episode,
                window.step,
                window.real,
                guess,
                under_other,
            )
        )
    return result


def _of_another(windows: Sequence[_Window], i: int) -> _Window:
    """The nearest one before it, round the end, of another episode; where there is none, of its own."""
    before = [windows[i - back] for back in range(1, len(windows) + 1)]
    return next((w for w in before if w.episode != windows[i].episode), before[0])


def _windows(policy: Policy, recorded: RecordedSet, clips: int) -> Iterator[_Window]:
    turns: Counter[str] = Counter()
    order = []
    for i, (episode, _) in enumerate(recorded.episodes):
        text = recorded.text_of(episode)
        order.append((turns[text], i))
        turns[text] += 1
    # So many of each episode, at least; all first ones, then all second ones.
    each = max(1, -(-clips // max(1, len(order))))
    seen: set[tuple[int, int]] = set()
    for k in range(each):
        for _, i in sorted(order):
            recording = recorded.recording(i)
            if recording is None:
                continue
            try:
                window = _window(policy, recording, (k + 0.5) / each)
                # Short episodes have fewer.
                if (i, window.step) not in seen:
                    seen.add((i, window.step))
                    yield window
            except DataError as error:
                # As of the windows of `open_loop`: another one is shown in its place.
                event("warning", text=f"no clip of it: {error}", episode=recording.episode.index)


def _window(policy: Policy, recording: Recording, share: float) -> _Window:
    """The window that begins behind this share of the steps at which one can begin. DataError
    where it cannot be read.
    """
    window, embodiment = policy.settings.window, recording.embodiment
    steps = len(recording.action)
    start = recording.near(int(share * max(0, steps - window.chunk)))
    views = recording.views([start + offset for offset in window.offsets])
    by_slot = {slot: views[camera] for slot, camera in embodiment.cameras.items()}
    real = compose(by_slot, policy.settings.canvas, None)
    # A short episode goes on with its last action.
    rows = np.minimum(start + np.arange(window.chunk), steps - 1)
    (_, observation), *_ = recording.observed([start])
    episode = recording.episode.index
    text = observation.prompt
    title = f"{text or 'episode'} (episode {episode}, step {start})"
    return _Window(title, text, episode, start, real, observation, recording.action[rows])


def video_figures(clips: Sequence[Clip]) -> dict[str, Any]:
    """What `gwp eval video` prints, over the pixels of all clips and, in `clips`, of each.

    psnr, ssim:    of the frames behind the first; `_copy`: of the first frame again
    psnr_moving:   where the real frames differ from the first; `_shuffled`: imagined under the
                   actions of another clip
    gain_moving:   psnr_moving less that of the copy, dB
    action_sensitivity: psnr_moving less that under shuffled actions, dB; 0: actions are not
                   heeded
    What is not known, as of a clip in which nothing moves, is left out.
    """
    each = [_sums(clip) for clip in clips]
    of_all = {
        name: np.sum([sums[name] for sums in each if name in sums], axis=0)
        for name in ("", "_copy", "_shuffled")
        if any(name in sums for sums in each)
    }
    of_each = [
        {"text": clip.text, "episode": clip.episode, "step": clip.step, **_figures(sums)}
        for clip, sums in zip(clips, each, strict=True)
    ]
    return {**_figures(of_all), "windows": len(clips), "clips": of_each}


def _sums(clip: Clip) -> dict[str, np.ndarray]:
    copied = np.broadcast_to(clip.real[:1], clip.real.shape)
    guesses = {"": clip.guess, "_copy": copied, "_shuffled": clip.shuffled}
    return {
        name: np.array(error_sums(clip.real[None], guess[None]))
        for name, guess in guesses.items()
        if guess is not None
    }


def _figures(sums: dict[str, np.ndarray]) -> dict[str, float]:
    found: dict[str, float] = {}
    for end, of_guess in sums.items():
        found |= {name + end: value for name, value in told(of_guess.tolist()).items()}
    if "psnr_moving" in found:
        found["gain_moving"] = found["psnr_moving"] - found["psnr_moving_copy"]
        if "psnr_moving_shuffled" in found:
            found["action_sensitivity"] = found["psnr_moving"] - found["psnr_moving_shuffled"]
    return {name: round(value, 4) for name, value in found.items()}

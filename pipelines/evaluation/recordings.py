"""Recorded episodes as a robot would have seen them: what policies are judged on."""

import io
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.embodiment import Embodiment
from gwp.data.formats.lerobot.read import read_set
from gwp.data.formats.robot_set import ACTION, STATE, Episode, RobotSet
from gwp.data.source import Source
from gwp.data.video.decode import decode_frames, open_video
from gwp.errors import DataError
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation


class Recording:
    """One recorded episode as the robot would have seen it. `recordings` makes it; evaluation
    asks it for observations.

    state  fp32 `[n, s]`, action fp32 `[n, d]`: a row per step, robot units
    """

    def __init__(self, data: RobotSet, episode: Episode, embodiment: Embodiment) -> None:
        self._data = data
        self.episode = episode
        self.embodiment = embodiment
        uri = storage.join(data.uri, episode.data_file)
        table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
        # A file of the newer layout holds many episodes.
        if "episode_index" in table.column_names:
            table = table.filter(pc.equal(table["episode_index"], episode.index))
        missing = {STATE, ACTION} - set(table.column_names)
        if missing:
            raise DataError(
                f"{data.uri}: no column {' and '.join(sorted(missing))}; open-loop evaluation "
                "needs recorded actions"
            )
        self.state = np.asarray(table[STATE].to_pylist(), np.float32)
        self.action = np.asarray(table[ACTION].to_pylist(), np.float32)

    def views(self, steps: list[int]) -> dict[str, np.ndarray]:
        """Camera key -> uint8 `[n, H, W, 3]` at these steps; steps past the end show the last
        frame.
        """
        result = {}
        for key in self.embodiment.cameras.values():
            if key not in self.episode.videos:
                raise DataError(
                    f"{self._data.uri}: no camera {key}; the set has {', '.join(self._data.cameras)}"
                )
            span = self.episode.videos[key]
            times = [span.start + min(s, self.episode.length - 1) / self._data.fps for s in steps]
            uri = storage.join(self._data.uri, span.file)
            # Half a frame: the nearest one is meant.
            tolerance = 0.5 / self._data.fps + 1e-3
            with open_video(uri, self._data.files.get(span.file)) as handle:
                result[key] = decode_frames(handle, times, tolerance)
        return result

    def observations(self, steps: list[int]) -> list[Observation]:
        """What the robot would have sent at these steps."""
        views = self.views(steps)
        observations = []
        for i, step in enumerate(steps):
            images = {camera: frames[i] for camera, frames in views.items()}
            observations.append(
                Observation(images, self.state[step], self.episode.text, self.embodiment.name)
            )
        return observations


def recordings(policy: Policy, uri: str, episodes: str | None = None) -> Iterator[Recording]:
    """Recordings of a LeRobot set for the policy's robot. DataError when widths or cameras do
    not fit.
    """
    data = read_set(uri)
    embodiment = embodiment_for(policy, data)
    chosen = set(Source(uri=uri, episodes=episodes).select([e.index for e in data.episodes]))
    for episode in data.episodes:
        if episode.index in chosen:
            yield Recording(data, episode, embodiment)


def embodiment_for(policy: Policy, data: RobotSet) -> Embodiment:
    """The robot of the policy whose action names are those of the set. DataError when none fits."""
    fits = [e for e in policy.bundle.embodiments.values() if e.action_names == data.action_names]
    if not fits:
        known = {n: len(e.action_names) for n, e in policy.bundle.embodiments.items()}
        raise DataError(
            f"{data.uri}: its {len(data.action_names)} actions "
            f"({', '.join(data.action_names[:4])}, ...) are of no robot of "
            f"this policy; it knows (name: actions) {known}"
        )
    return fits[0]


def first_observation(policy: Policy, uri: str) -> Observation:
    """An observation to time the policy with."""
    return next(recordings(policy, uri)).observations([0])[0]

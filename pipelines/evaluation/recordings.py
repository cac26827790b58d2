"""Recorded episodes as a robot would have seen them: what policies are judged on.

They are read as training reads them, whatever their format: the same reader, columns, rates and
positions of frames.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gwp import storage
from gwp.data.canvas import SLOTS
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.format import FilePart
from gwp.data.formats.pictures import Frames, open_frames
from gwp.data.formats.robot_set import Episode, RobotSet, check_embodiment, rows_per_step
from gwp.data.formats.vectors import episode_vectors
from gwp.data.rates import step_times
from gwp.data.robot.embodiment import Embodiment, Slot
from gwp.data.source import Source
from gwp.data.stats.windows import stepped
from gwp.data.video.decode import explained
from gwp.errors import DataError
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation
from pipelines.console import event

# Episodes that a message names.
_NAMED = 3
NO_WINDOW = (
    "every window needs a row with NaN or Inf, or a picture that cannot be read; choose other "
    "`episodes`"
)


@dataclass(frozen=True)
class RecordedSet:
    """Recorded episodes of one robot of a policy; `RecordedSet.of` opens them.

    data:       the set
    source:     which of its episodes, and what the set does not say of itself
    embodiment: the robot of the policy that recorded it
    cameras:    slot -> camera key of the set
    episodes:   the chosen episodes that can be used, each with its first row in its data file
    reader:     what was read of the files
    """

    data: RobotSet
    source: Source
    embodiment: Embodiment
    cameras: dict[Slot, str]
    episodes: tuple[tuple[Episode, int], ...]
    reader: FileReader

    @classmethod
    def of(cls, robots: Mapping[str, Embodiment], source: Source) -> "RecordedSet":
        """The recordings that `source` names, of one of these robots of a policy.

        Episodes that cannot be used are told as a warning. DataError when the set is of no
        robot, lacks one of its cameras, or no chosen episode can be used.
        """
        reader = FileReader()
        data = robots_at(source, reader)
        if data is None:
            raise DataError(
                f"{source.uri}: no robot set there; a policy is judged on recorded states and actions"
            )
        embodiment = _robot_of(robots, data, source)
        # As a policy is judged on states and actions, whatever the source says of their use.
        labelled = source.model_copy(update={"embodiment": embodiment.name, "with_actions": True})
        cameras = data.slots(source.cameras or embodiment.cameras)
        good, bad = usable_episodes(data, labelled, list(cameras.values()), reader)
        reasons = "; ".join(f"episode {episode.index}: {why}" for episode, why in bad[:_NAMED])
        if not good:
            raise DataError(f"{source.uri}: no chosen episode can be used ({reasons})")
        if bad:
            event("warning", text=f"{len(bad)} episodes of {source.uri} left out", reasons=reasons)
        return cls(data, source, embodiment, cameras, tuple(good), reader)

    def text_of(self, episode: Episode, row: int = 0) -> str:
        """The instruction of one of its episodes, where a row of it is the first that is seen."""
        return episode.text_at(row) if self.source.task is None else self.source.task

    def __iter__(self) -> Iterator["Recording"]:
        """One after another, so that the rows of one at a time are in memory. One whose rows
        cannot be read is told and left out.
        """
        for i in range(len(self.episodes)):
            recording = self.recording(i)
            if recording is not None:
                yield recording

    def recording(self, i: int) -> "Recording | None":
        """Of `episodes[i]`; where its rows cannot be read that is told, and it is None."""
        episode, first_row = self.episodes[i]
        try:
            return Recording(self, episode, first_row)
        except DataError as error:
            file = storage.join(self.data.uri, episode.data_file)
            reason = str(explained(file, error))
            event("warning", text=f"episode left out: {reason}", episode=episode.index)
            return None


class Recording:
    """One recorded episode as the robot would have seen it, at the rate of the robot.

    state:  float32 `[steps, ds]`, robot units
    action: float32 `[steps, da]`, robot units
    usable: bool `[steps]`, from which of them training takes a sample: the others need a row
    with NaN or Inf
    """

    def __init__(self, recorded: RecordedSet, episode: Episode, first_row: int) -> None:
        self._set = recorded
        self.episode = episode
        self.embodiment = recorded.embodiment
        states, actions = episode_vectors(recorded.data, episode, first_row, recorded.reader)
        # Rows of the set per control step of the robot: 1 unless their rates differ.
        self._ratio = rows_per_step(recorded.data, self.embodiment)
        state, action, self.usable = stepped(
            states, actions, self._ratio, self.embodiment, self.embodiment.chunk
        )
        self.state, self.action = state.astype(np.float32), action.astype(np.float32)

    def starts(self) -> list[int]:
        """The steps at which the robot would have asked for actions; those from which training
        takes no sample are told and left out.
        """
        every = range(0, len(self.action), self.embodiment.replan)
        good = [step for step in every if self.usable[step]]
        if len(good) < len(every):
            left, file = len(every) - len(good), self.episode.data_file
            text = f"{left} of {len(every)} windows left out: NaN or Inf in {file}"
            event("warning", text=text, episode=self.episode.index)
        return good

    def runs(self) -> list[list[tuple[int, Observation]]]:
        """`starts` that can be `observed`, in pieces without gaps, in which a chunk goes over
        into the next.
        """
        runs: list[list[tuple[int, Observation]]] = []
        for step, observation in self.observed(self.starts()):
            if runs and step - runs[-1][-1][0] == self.embodiment.replan:
                runs[-1].append((step, observation))
            else:
                runs.append([(step, observation)])
        return runs

    def near(self, step: int) -> int:
        """The usable step nearest to this one. DataError when there is none."""
        usable = np.flatnonzero(self.usable)
        if not len(usable):
            raise DataError(f"episode {self.episode.index}: {NO_WINDOW}")
        return int(usable[np.abs(usable - step).argmin()])

    def views(self, steps: Sequence[int]) -> dict[str, np.ndarray]:
        """Camera key of the robot -> uint8 `[n, H, W, 3]` at these steps; steps past the end
        show the last frame. DataError when one of them cannot be read.
        """
        result = {}
        for camera, frames in self._cameras(steps):
            broken = next((frame for frame in frames if isinstance(frame, DataError)), None)
            if broken is not None:
                raise broken
            result[camera] = np.stack([np.asarray(frame) for frame in frames])
        return result

    def observed(self, steps: Sequence[int]) -> list[tuple[int, Observation]]:
        """What the robot would have sent at those of these steps whose pictures can be read; the
        others are told and left out.
        """
        images: list[dict[str, np.ndarray]] = [{} for _ in steps]
        reasons: dict[int, DataError] = {}
        for camera, frames in self._cameras(steps):
            for i, frame in enumerate(frames):
                if isinstance(frame, DataError):
                    reasons.setdefault(i, frame)
                else:
                    images[i][camera] = frame
        if reasons:
            first = next(iter(reasons.values()))
            text = f"{len(reasons)} of {len(steps)} windows left out: {first}"
            event("warning", text=text, episode=self.episode.index)
        good = [(i, step) for i, step in enumerate(steps) if i not in reasons]
        return [(step, self._observation(step, images[i])) for i, step in good]

    def _cameras(self, steps: Sequence[int]) -> Iterator[tuple[str, list[np.ndarray | DataError]]]:
        """Camera key of the robot, and the frames at these steps or why they cannot be read."""
        for slot in SLOTS:
            if slot in self._set.cameras:
                # Under the name that the policy knows, whatever the set calls it.
                camera = self.embodiment.cameras.get(slot, self._set.cameras[slot])
                yield camera, self._frames(self._set.cameras[slot], steps)

    def _frames(self, camera: str, steps: Sequence[int]) -> list[np.ndarray | DataError]:
        data = self._set.data
        span = self.episode.videos[camera]
        size = data.files[span.file] if span.bytes is None else span.bytes
        part = FilePart(storage.join(data.uri, span.file), span.offset, size)
        rate = data.fps / self._ratio
        # The clock of a file may run a little off that of the rows.
        stretch = data.fps / span.rate if span.rate else 1.0
        exact = step_times(steps, len(self.action), span.start, rate, stretch)
        # As in training: sums that differ by less than a microsecond are one position.
        times = [round(t, 6) for t in exact]
        # Half a row: between two steps of another rate the nearest frame is shown.
        tolerance = 0.5 / data.fps + 1e-6
        reader = self._set.reader
        about = part, span.key, data.fps, reader, tolerance, self._set.source.is_bgr(camera)
        found: dict[float, np.ndarray | DataError] = {}
        # A reader wants ascending, different times; steps past the end repeat one.
        left = sorted(set(times))
        try:
            with open_frames(data.format, *about) as frames:
                while left:
                    left = _fill(found, frames, left, part.uri)
        except DataError as error:
            # The file as a whole.
            found |= dict.fromkeys(left, explained(part.uri, error))
        return [found[t] for t in times]

    def _observation(self, step: int, images: dict[str, np.ndarray]) -> Observation:
        text = self._set.text_of(self.episode, int(step * self._ratio + 1e-6))
        return Observation(images, self.state[step], text, self.embodiment.name)


def _fill(
    found: dict[float, np.ndarray | DataError], frames: Frames, left: list[float], uri: str
) -> list[float]:
    """Add the frames at ascending times, up to a bad place; the times behind it are left."""
    done = 0
    try:
        for t, picture in frames(left):
            found[t] = np.asarray(picture)
            done += 1
    except DataError as error:
        # As in training it costs what needs it, no more.
        found[left[done]] = explained(uri, error)
        return left[done + 1 :]
    return []


def _robot_of(robots: Mapping[str, Embodiment], data: RobotSet, source: Source) -> Embodiment:
    """The robot of the policy that the source names, else the one whose actions have the names
    of the set's. DataError when none fits.
    """
    widths = {name: len(robot.action_names) for name, robot in robots.items()}
    if source.embodiment is not None:
        if source.embodiment not in robots:
            raise DataError(
                f"robot '{source.embodiment}' is not one of this policy; it knows (name: actions) "
                f"{widths}"
            )
        robot = robots[source.embodiment]
    else:
        alike = [robot for robot in robots.values() if robot.action_names == data.action_names]
        if not alike:
            raise DataError(
                f"{source.uri}: its {len(data.action_names)} actions "
                f"({', '.join(data.action_names[:4])}, ...) are of no robot of this policy; it knows "
                f"(name: actions) {widths}"
            )
        robot = alike[0]
    check_embodiment(data, robot, source.resample)
    return robot


def first_observation(policy: Policy, source: Source) -> Observation:
    """An observation to time the policy with. DataError when there is none."""
    for recording in RecordedSet.of(policy.bundle.embodiments, source):
        # One by one: more than the first are asked for where that cannot be read.
        for step in recording.starts():
            for _, observation in recording.observed([step]):
                return observation
    raise DataError(f"{source.uri}: {NO_WINDOW}")

"""Episodes and videos that lie in two sources, byte for byte: their samples would count twice.

What is the same file is an error (`gwp.data.sources`). A copy elsewhere may be meant, so it is told.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.plain.clip_set import Clip
from gwp.data.formats.robot_set import Episode, RobotSet, VideoSpan
from gwp.data.formats.vectors import episode_vectors
from gwp.data.source import Source
from gwp.data.sources import use_of
from gwp.errors import DataError
from gwp.storage.names import shown

_COMPARED = 64
"""Pairs of two sources of which the content is compared."""
_ENOUGH = 3
"""Copies of one source in another that are found and named."""
_HEAD = 1 << 16
"""Bytes of a video by which it is compared."""

Size = tuple[int, ...]
"""What two copies have in common without a look into them: rows, and bytes of their files."""


@dataclass(frozen=True)
class Piece:
    """An episode or a video of a source: name, size, and a function that reads what tells it from
    others (DataError where it cannot be read).
    """

    name: str
    size: Size
    read: Callable[[], bytes]

    @cached_property
    def digest(self) -> bytes | None:
        """None where it cannot be read: it is like no other."""
        try:
            return hashlib.sha256(self.read()).digest()
        except DataError:
            return None


class Copies:
    """Pieces of the sources of a job, and which of them are copies."""

    def __init__(self) -> None:
        self._known: defaultdict[tuple[str, Size], list[tuple[str, Piece]]] = defaultdict(list)

    def note(self, source: Source, pieces: Iterable[Piece]) -> Iterator[str]:
        """Keep what a source has; a line for each earlier source that holds some of it for the
        same use.
        """
        use = use_of(source)
        compared: Counter[str] = Counter()
        found: defaultdict[str, list[str]] = defaultdict(list)
        own: list[tuple[tuple[str, Size], Piece]] = []
        for piece in pieces:
            key = use, piece.size
            own.append((key, piece))
            for uri, other in self._known.get(key, ()):
                # Of one set two sources choose different episodes.
                done = compared[uri] == _COMPARED or len(found[uri]) == _ENOUGH
                if uri == source.uri or done:
                    continue
                compared[uri] += 1
                if piece.digest is not None and piece.digest == other.digest:
                    found[uri].append(f"{piece.name} is {other.name}")
                    break
        # Two alike in one source are that source's own matter.
        for key, piece in own:
            self._known[key].append((source.uri, piece))
        for uri, names in found.items():
            if names:
                more = " and so on" if len(names) == _ENOUGH else ""
                yield (
                    f"{source.uri}: holds copies of what {uri} holds ({', '.join(names)} there"
                    f"{more}), and they count twice; name one of the two, unless that is meant"
                )


def episode_pieces(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], reader: FileReader
) -> Iterator[Piece]:
    """Those of a robot set; episodes with their first rows."""

    def piece(episode: Episode, first: int) -> Piece:
        spans = list(episode.videos.values())
        sizes = sorted(_bytes(data, span.file, span.bytes) for span in spans)
        rows = _bytes(data, episode.data_file, episode.bytes)

        def read() -> bytes:
            if data.state_keys or data.action_keys:
                state_action = episode_vectors(data, episode, first, reader)
                return b"".join(part.tobytes() for part in state_action)
            return b"".join(_head(data, span) for span in spans)

        return Piece(f"episode {episode.index}", (episode.length, rows, *sizes), read)

    return (piece(episode, first) for episode, first in episodes)


def _bytes(data: RobotSet, file: str, part: int | None) -> int:
    return data.files.get(file, 0) if part is None else part


def _head(data: RobotSet, span: VideoSpan) -> bytes:
    return _beginning(
        storage.join(data.uri, span.file), span.offset, _bytes(data, span.file, span.bytes)
    )


def clip_pieces(clips: Sequence[Clip]) -> Iterator[Piece]:
    """Those of plain videos."""

    def piece(clip: Clip) -> Piece:
        return Piece(
            shown(clip.name), (clip.size,), lambda: _beginning(clip.uri, clip.offset, clip.size)
        )

    return map(piece, clips)


def _beginning(uri: str, offset: int, size: int) -> bytes:
    return bytes(storage.read_ranges([uri], [offset], [offset + min(size, _HEAD)])[0])

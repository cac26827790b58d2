"""Which checkpoints are to be judged, and which of them next."""

from collections.abc import Sequence

from gwp.errors import GwpError
from gwp.storage.retry import expired, passing
from pipelines.training.checkpoint.checkpoints import (
    ASIDE,
    MANIFEST,
    folders,
    load_committed,
    place_of,
    step_of,
)
from pipelines.training.checkpoint.verdict import VERDICT


class Waiting:
    """Names of checkpoint folders, bounded: who judges more slowly than checkpoints come never falls
    behind by more than one.

    What an earlier command left without a verdict comes first, oldest first. Of the checkpoints
    that were taken since, the newest alone waits; one that another has overtaken is passed over.

    now: the one that is being judged; None: none is
    """

    def __init__(self) -> None:
        self.now: str | None = None
        self._left: list[str] | None = None
        self._newest: str | None = None

    def add(self, fresh: Sequence[str]) -> None:
        """Those that are new since the last call, oldest first; the first call has what was left."""
        if self._left is None:
            self._left = list(fresh)
        elif fresh:
            self._newest = fresh[-1]

    def next(self) -> str | None:
        """The one to judge now, from here on `now`; None when none waits."""
        if self._left:
            self.now = self._left.pop(0)
        else:
            self.now, self._newest = self._newest, None
        return self.now

    def over(self) -> None:
        """`now` is judged, or cannot be."""
        self.now = None

    def give_up(self) -> None:
        """Of those that wait none will be judged."""
        self._left, self._newest = [], None

    @property
    def names(self) -> list[str]:
        """Those that have to stay: the one that is judged now, and those that wait."""
        return [name for name in (self.now, *(self._left or ()), self._newest) if name]


def without_verdict(run_uri: str, known: set[str]) -> list[str]:
    """Names of whole checkpoints that nobody has judged, oldest first, without those in `known`,
    which gets all that were looked at. Raises what storage does, and nothing is known then.
    """
    found = []
    looked_at = set()
    listed = folders(run_uri)
    for name in sorted(listed.keys() - known, key=lambda name: (step_of(name), name)):
        files = listed[name]
        if MANIFEST not in files:
            # It may be in the making.
            continue
        looked_at.add(name)
        if ASIDE in files or VERDICT in files:
            continue
        try:
            # By the workers themselves, when it was taken.
            judged = load_committed(place_of(run_uri, name)).validation is not None
        except GwpError as error:
            if passing(error) or expired(error):
                raise
            # Damaged, or gone since the listing: nothing that can be judged.
            continue
        if not judged:
            found.append(name)
    known |= looked_at
    return found

"""What the ranks on one machine have in common: a folder, into which one of them brings what all
of them read.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from pipelines.training.engine.ranks import Ranks


class Node:
    """The machine of a rank; the training loop makes it.

    A checkpoint of a large model is hundreds of GB: fetched and converted once per machine, it
    neither fills the disk nor asks storage for the same bytes again.

    folder: of the first rank on this machine, which all of them can read
    """

    def __init__(self, ranks: Ranks, number: int, local_rank: int, scratch: Path) -> None:
        self._ranks = ranks
        self._first = local_rank == 0
        told = ranks.gathered((number, local_rank, str(scratch)))
        firsts = {node: path for node, local, path in told if local == 0}
        self.folder = Path(firsts[number])

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes what all of them know."""
        return self._ranks.rank == 0

    def once(self, bring: Callable[[], object]) -> None:
        """Call `bring` on the first rank of every machine, and let the others wait for it.
        Collective.
        """
        if self._first:
            bring()
        self._ranks.gathered(None)

    def remove(self, name: str) -> None:
        """Remove a part of the folder when all ranks are done with it. Collective."""
        self._ranks.gathered(None)
        if self._first:
            shutil.rmtree(self.folder / name)

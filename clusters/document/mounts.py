"""Folders of pods and nodes: which are taken, and which a document may name."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from clusters.document.words import LinePath
from gwp import storage
from gwp.paths import PathField

SHARED = "/dev/shm"  # noqa: S108
"""Ray's object store."""
SPILL = "/tmp/ray"  # noqa: S108
"""Ray's own folder: logs, and what spills."""
CACHE = "/var/cache/gwp"
"""Policies that were fetched."""
STAGE_FOLDER = "/etc/gwp/stage"
"""The file of the stage, on the head."""
_OWN = (SHARED, SPILL, CACHE, STAGE_FOLDER)
# Below them lie the system of the image, its Python and gwp, and what Kubernetes mounts itself.
_SYSTEM = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt/gwp", "/proc", "/run", "/sbin"),
    *("/sys", "/usr", "/var/run"),
)


def _mount_path(path: str) -> str:
    """ValueError when a disk mounted there would hide what the pods need."""
    if not path.startswith("/") or ":" in path:
        raise ValueError(f"{path!r} is no place for a disk; give one such as /weights")
    plain = str(PurePosixPath("/", *(part for part in path.split("/") if part)))
    if ".." in path.split("/") or plain == "/":
        raise ValueError(f"{path} leads elsewhere than it says; give one such as /weights")
    place = PurePosixPath(plain)
    below = next((p for p in (*_OWN, *_SYSTEM) if place.is_relative_to(p)), None)
    above = next((p for p in (*_OWN, *_SYSTEM) if PurePosixPath(p).is_relative_to(place)), None)
    if taken := below or above:
        raise ValueError(
            f"{path} would lie over {taken}, which the pods need; give one such as /weights"
        )
    return plain


def _node_path(path: str) -> str:
    """ValueError when a shell on a node cannot find it."""
    if not path or storage.is_remote(path):
        raise ValueError(f"{path!r} is no path of a disk; give one that all nodes see")
    return path


def require_apart(paths: Sequence[str]) -> None:
    """ValueError when two disks would be mounted at one place."""
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise ValueError(f"two disks at {twice}; give each a path of its own")


MountPath = Annotated[LinePath, AfterValidator(_mount_path)]
"""Where a disk is mounted in pods."""
NodePath = Annotated[LinePath, AfterValidator(_node_path), PathField()]
"""A path on nodes; seen from the current folder."""

"""Where this machine keeps fetched bundles and compiled code.

Code and policies are loaded from there, so a folder that another user may write to is never used.
"""

import atexit
import logging
import os
import shutil
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

VARIABLE = "GWP_CACHE"
"""Environment variable: the folder for everything that is kept between runs."""
_FIX = f"set {VARIABLE} to a folder of your own"
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_folder(part: str) -> Path:
    """The folder of one part of the cache, there and ours alone: below `root`.

    Where that cannot be, a private temporary folder in its place, with the reason on the log,
    for as long as this process lives.
    """
    try:
        problem = problem_of(part)
    except RuntimeError:
        return _private(f"the home folder is not known; {_FIX}", part)
    return _private(problem, part) if problem else root() / part


def problem_of(part: str) -> str:
    """Why the folder of a part of the cache cannot be used, and what to do; empty where it can.

    Makes it where it is not there. RuntimeError as `root`.
    """
    return _made(root() / part)


def root() -> Path:
    """GWP_CACHE, else XDG_CACHE_HOME/gwp, else ~/.cache/gwp. RuntimeError without a home."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    # The specification wants relative ones ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "gwp"


def written_by_others(path: Path) -> str:
    """Why somebody else may have written what `path` is, or leads to; empty where only we can.

    OSError when it is not there.
    """
    status = path.stat()
    if status.st_uid != os.geteuid():
        return f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}"
    if status.st_mode & _OTHERS:
        return f"{path} may be written to by other users"
    return ""


def _made(folder: Path) -> str:
    """Make the folder where it is not there; why it cannot be used."""
    try:
        missing = [level for level in (folder, *folder.parents) if not level.exists()]
        above = missing[-1].parent if missing else folder
        # As root in the home of a user (`sudo -E`): what is made there would be in their way.
        as_root = os.geteuid() == 0 and VARIABLE not in os.environ
        if missing and as_root and above.stat().st_uid != 0:
            return f"{above} belongs to user {above.stat().st_uid}, and this is root; {_FIX}"
        for level in reversed(missing):
            # Whatever the umask is; another process may be as far.
            level.mkdir(mode=0o700, exist_ok=True)
        if problem := written_by_others(folder):
            return f"{problem}; run `chmod go-w {folder}` if it is yours, or {_FIX}"
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            return f"{folder} cannot be written to; {_FIX}"
    except OSError as error:
        return f"{folder} cannot be made ({error.strerror}); {_FIX}"
    return ""


@lru_cache(maxsize=64)
def _private(problem: str, part: str) -> Path:
    """A temporary folder in place of one that has a problem, told once. Its mode is 0700."""
    folder = Path(tempfile.mkdtemp(prefix=f"gwp-{part}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    logging.getLogger(__name__).warning(
        "cache: %s; until then %s is in its place, for this process alone", problem, folder
    )
    return folder

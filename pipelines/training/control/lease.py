"""One driver per run: a lease in the run folder.

    <run>/lease/000003.json     who holds it, and a number that grows while it lives

Taking it creates the next file, which storage lets only one do. Whoever meets a lease watches
its number, so clocks need not agree: one that stands still is of a driver that died.
"""

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gwp import storage
from gwp.errors import GwpError, MissingError

# Seconds between signs of life.
BEAT_S = 5.0
# So many without one, and its holder is taken for dead: storage may be away for a while.
_MISSED = 6
_NAME = re.compile(r"\d+\.json")

logger = logging.getLogger(__name__)


@contextmanager
def lease(run_uri: str, beat_s: float = BEAT_S) -> Iterator[None]:
    """Hold the run while the block lasts; GwpError when another driver does.

    After a driver that was killed on another machine it takes `6 * beat_s` seconds to tell.
    """
    folder = storage.join(run_uri, "lease")
    # What is half written has another name.
    numbers = sorted(filter(_NAME.fullmatch, storage.list_files(folder)))
    if numbers:
        _require_free(storage.join(folder, numbers[-1]), run_uri, beat_s)
    number = int(numbers[-1].partition(".")[0]) + 1 if numbers else 1
    own = storage.join(folder, f"{number:06d}.json")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "beat": 0}
    try:
        storage.write_bytes(own, json.dumps(holder).encode(), create_only=True)
    except FileExistsError as error:
        raise GwpError(f"{run_uri}: another driver took this run at the same moment") from error
    for name in numbers:
        storage.remove(storage.join(folder, name))
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(own, holder, done, beat_s), daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        # It may hang in a write; the end does not wait for storage for ever.
        beating.join(timeout=30)
        _give_back(own)


def _beat(own: str, holder: dict[str, Any], done: threading.Event, beat_s: float) -> None:
    while not done.wait(beat_s):
        holder["beat"] += 1
        _say(own, holder)


def _say(own: str, holder: dict[str, Any]) -> None:
    try:
        storage.write_bytes(own, json.dumps(holder).encode())
    except Exception as error:  # noqa: BLE001  training is not to end for it
        logger.warning("%s is not written: %s", own, error)


def _give_back(own: str) -> None:
    try:
        storage.remove(own)
    except Exception as error:  # noqa: BLE001  it is over all the same, and stands still
        logger.warning("%s is not removed: %s", own, error)


def _require_free(uri: str, run_uri: str, beat_s: float) -> None:
    """GwpError when the lease at `uri` is alive."""
    first = _read(uri)
    if first is None or _is_dead_here(first):
        return
    logger.warning(
        "%s is held by process %s on %s; watching whether it lives",
        run_uri,
        first["pid"],
        first["host"],
    )
    end = time.monotonic() + _MISSED * beat_s
    while time.monotonic() < end:
        time.sleep(min(1.0, beat_s))
        now = _read(uri)
        if now is None:
            return
        if now["beat"] != first["beat"]:
            raise GwpError(
                f"{run_uri} is being trained by process {now['pid']} on {now['host']}; wait for "
                "it, or stop it, or give run.name another name"
            )


def _read(uri: str) -> dict[str, Any] | None:
    """What the lease says; None when it was given back."""
    unknown: dict[str, Any] = {"host": "an unknown machine", "pid": 0, "beat": 0}
    try:
        holder: dict[str, Any] = json.loads(storage.read_bytes(uri))
    except MissingError:
        return None
    except ValueError:
        # Cut short by a death.
        return unknown
    return unknown | holder


def _is_dead_here(holder: dict[str, Any]) -> bool:
    """Whether its process was on this machine and is gone."""
    if holder["host"] != socket.gethostname() or not holder["pid"]:
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        # It lives, and is somebody else's.
        pass
    return False

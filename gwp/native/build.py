"""Compile the code beside this file for this machine, once, and load it."""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gwp.cache_folder import cache_folder, written_by_others

SWITCH = "GWP_NATIVE"
"""Environment variable: 0 does without compiled code."""
FLAGS = "GWP_NATIVE_FLAGS"
"""Environment variable: more flags for the compiler, behind the others. They make libraries of
their own."""
_LIMIT_S = 300
# Numbers as written: no reordering of sums, no assumption that there is no NaN.
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")


@dataclass(frozen=True)
class _Code:
    """sources: the last is what is compiled, the others it includes; flags: beside the common
    ones; without: what is done without it.
    """

    sources: tuple[str, ...]
    flags: tuple[str, ...]
    without: str


CODE = {
    "passes": _Code(
        ("barrier.h", "plan.h", "vectors.h", "tiles.h", "passes.cpp"),
        ("-fopenmp",),
        "a CPU acts at about half the speed",
    ),
    "pictures": _Code(("pictures.cpp",), (), "frames are scaled at about half the speed"),
}
"""What there is."""


@lru_cache(maxsize=len(CODE))
def library(name: str) -> ctypes.CDLL | None:
    """Compiled code of CODE; None, with the reason on the log, where it is switched off or
    cannot be had. The first call compiles (5 s).
    """
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return ctypes.CDLL(str(compiled(name)))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning(
            "no compiled %s, so %s: %s", name, CODE[name].without, error
        )
        return None


def compiled(name: str, flags: tuple[str, ...] = _FLAGS) -> Path:
    """The library for this processor, from the cache folder or made now.

    OSError or SubprocessError with what the compiler said.
    """
    compiler = compiler_command()
    here, code = Path(__file__).parent, CODE[name]
    flags = (*flags, *code.flags, *shlex.split(os.environ.get(FLAGS, "")))
    about = [
        *((here / source).read_text() for source in code.sources),
        *flags,
        *compiler,
        platform.machine(),
        _processor(),
    ]
    file = f"{name}-{hashlib.sha256(chr(0).join(about).encode()).hexdigest()[:16]}.so"
    folder = cache_folder("native")
    target = folder / file
    if not _ours(target):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / file
            done = subprocess.run(
                [*compiler, *flags, "-o", str(fresh), str(here / code.sources[-1])],
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                check=False,
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise subprocess.SubprocessError(
                    f"{shlex.join(compiler)}: {next((x for x in lines if 'error' in x), lines[-1])}"
                )
            # Whatever the umask is.
            fresh.chmod(0o700)
            # Whole or not there, whoever else compiles at the same time.
            fresh.replace(target)
    return target


def compiler_command() -> list[str]:
    """What compiles: CXX, which may bring arguments (`ccache g++`), or the first that is there.

    OSError when there is none.
    """
    if named := shlex.split(os.environ.get("CXX", "")):
        return named
    there = next((name for name in ("g++", "c++") if shutil.which(name)), None)
    if there is None:
        raise OSError("no C++ compiler; install g++")
    return [there]


def _ours(library: Path) -> bool:
    """Whether there is a library that nobody else can have written; others are told of."""
    if not library.exists():
        return False
    problem = f"{library} is a link" if library.is_symlink() else written_by_others(library)
    if problem:
        logging.getLogger(__name__).warning("%s, so it is not loaded but compiled again", problem)
    return not problem


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")

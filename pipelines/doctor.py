"""Checks of the machine. Each answers ok, warn (something works less well) or missing
(required), with the fix.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gwp.machine import cores

GIB = 1 << 30

# Distributions whose version matters, and the extra that brings them.
PACKAGES = {
    "torch": "model",
    "transformers": "model",
    "diffusers": "model",
    "av": "model",
    "pyarrow": "model",
    "ray": "cluster",
    "deepspeed": "cluster",
    "mlflow": "cluster",
    "moto": "cluster",
    "metaworld": "sim",
    "ogbench": "ogbench",
    "gym-aloha": "aloha",
}
# Without these nothing but simulation is lost.
OPTIONAL_EXTRAS = {"sim", "ogbench", "aloha"}

PORTS = {8000: "Ray Serve", 8265: "the Ray dashboard", 6379: "the Ray head", 5000: "MLflow"}

# The smallest scene there is, and one picture of it.
_RENDER = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().shape == (32, 32, 3)
renderer.close()
"""


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    status: Literal["ok", "warn", "missing"]
    detail: str
    fix: str = ""
    """What to do; empty when the status is ok."""


def _ok_or(
    good: bool, otherwise: Literal["warn", "missing"], name: str, detail: str, fix: str
) -> Check:
    return Check(name, "ok", detail) if good else Check(name, otherwise, detail, fix)


def python() -> Check:
    version = sys.version_info
    return _ok_or(
        # As `requires-python` of pyproject.toml says.
        (3, 11) <= version[:2] < (3, 13),
        "missing",
        "python",
        f"{platform.python_version()} on {platform.machine()}",
        "use Python 3.11 or 3.12, for example: make setup PYTHON=python3.11",
    )


def packages() -> list[Check]:
    """Installed version of each package that matters, against the range the distribution asks
    for.
    """
    wanted: dict[str, str] = {}
    try:
        requires = importlib.metadata.requires("gwp") or []
    except importlib.metadata.PackageNotFoundError:
        requires = []
    for line in requires:
        # `name[extra]>=1,<2; marker`: name and range.
        if match := re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*([^;]*)", line):
            wanted[match[1].lower()] = match[2].strip()
    checks = []
    for name, extra in PACKAGES.items():
        severity: Literal["warn", "missing"] = "warn" if extra in OPTIONAL_EXTRAS else "missing"
        fix = f"pip install 'gwp[{extra}]'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, severity, "not installed", fix))
            continue
        # Another version than asked for may well work, so it is no more than a warning.
        fits = _fits(version, wanted.get(name, ""))
        detail = version if fits else f"{version}, outside {wanted[name]}"
        checks.append(_ok_or(fits, "warn", name, detail, f"{fix} into a fresh environment"))
    return checks


def _fits(version: str, specifier: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:
        # It comes with an extra; without it nobody can compare.
        return True
    return SpecifierSet(specifier).contains(version, prereleases=True)


def accelerator() -> Check:
    """GPUs that torch can use, or why it cannot."""
    try:
        import torch
    except ImportError as error:
        return Check("gpu", "warn", f"torch does not import ({error})", "pip install 'gwp[model]'")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        listed = ", ".join(
            f"{device.name} {device.total_memory / GIB:.0f} GiB" for device in devices
        )
        return Check("gpu", "ok", f"{listed}; torch built for CUDA {torch.version.cuda}")
    # A driver, and a build without CUDA: a fault of the installation, not of the machine.
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return Check(
            "gpu",
            "warn",
            "there is a driver, but torch is a CPU build",
            "install the CUDA build of the same version",
        )
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return Check(
        "gpu",
        "warn",
        f"none visible; torch is a {build} build",
        "none for tiny models; full-size ones need a GPU",
    )


def codecs() -> Check:
    """What the av wheel decodes and encodes: data sets come as H.264, HEVC or AV1; recordings
    are written with libx264.
    """
    try:
        import av.codec
    except ImportError as error:
        return Check(
            "video codecs", "missing", f"av does not import ({error})", "pip install 'gwp[model]'"
        )
    lacking = []
    # libdav1d by name: FFmpeg's own AV1 decoder needs hardware for it.
    for name, mode in (("h264", "r"), ("hevc", "r"), ("libdav1d", "r"), ("libx264", "w")):
        try:
            av.codec.Codec(name, mode)
        except ValueError:
            lacking.append(f"{name} {'decoder' if mode == 'r' else 'encoder'}")
    detail = (
        f"lacking {', '.join(lacking)}" if lacking else "h264, hevc and av1 decode, libx264 encodes"
    )
    return _ok_or(
        not lacking,
        "missing",
        "video codecs",
        detail,
        "pip install --force-reinstall --only-binary av av",
    )


def rendering(timeout_s: float = 60.0) -> Check:
    """Off-screen rendering for simulators, in a process of its own: a broken driver can take
    the process down.
    """
    # As `gwp.sim` chooses it.
    backend = os.environ.get("MUJOCO_GL", "egl")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _RENDER],
            env=os.environ | {"MUJOCO_GL": backend},
            timeout=timeout_s,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(
            "rendering",
            "warn",
            f"MUJOCO_GL={backend} gave no picture in {timeout_s:.0f} s",
            "try MUJOCO_GL=osmesa",
        )
    if "No module named 'mujoco'" in done.stderr:
        return Check("rendering", "warn", "mujoco is not installed", "pip install 'gwp[sim]'")
    renders = done.returncode == 0
    # The last line of a traceback is the error itself.
    *_, last = ["fails", *done.stderr.strip().splitlines()]
    return _ok_or(
        renders,
        "warn",
        "rendering",
        f"MUJOCO_GL={backend}: {'renders' if renders else last}",
        "install libegl1 and Mesa's drivers, or libosmesa6 and set MUJOCO_GL=osmesa",
    )


def compiler() -> Check:
    from gwp.native.build import compiler_command

    try:
        path = shutil.which(compiler_command()[0])
    except OSError:
        path = None
    return _ok_or(
        path is not None,
        "warn",
        "c++ compiler",
        path or "none",
        "install g++: acting on a CPU and DeepSpeed's CPU Adam build code when they start",
    )


def compiled_code() -> Check:
    """The layers of inference and the scaling of pictures as compiled code."""
    from gwp.native.build import CODE, compiled

    try:
        # What is not there yet is built now, which takes a while the first time.
        return Check("compiled code", "ok", ", ".join(str(compiled(name)) for name in CODE))
    except (OSError, subprocess.SubprocessError) as error:
        return Check(
            "compiled code",
            "warn",
            str(error),
            "see that g++ works; without it acting on a CPU takes about twice as long",
        )


def cache() -> Check:
    """Whether fetched bundles and compiled code are kept from one process to the next."""
    from gwp.cache_folder import problem_of, root

    try:
        folder = root()
        problem = problem_of("native")
    except RuntimeError:
        return Check("cache", "warn", "no home folder", "set GWP_CACHE to a folder of your own")
    return _ok_or(
        not problem,
        "warn",
        "cache",
        problem or str(folder),
        "until then every process fetches and compiles anew",
    )


def shared_memory() -> Check:
    """Ray keeps decoded frames in shared memory; where that is small it falls back to files on
    disk.
    """
    # macOS has none.
    mount = Path("/dev", "shm")
    if not mount.is_dir():
        return Check("shared memory", "ok", f"{mount} is not used on this system")
    free = shutil.disk_usage(mount).free
    return _ok_or(
        free >= 2 * GIB,
        "warn",
        "shared memory",
        f"{mount}: {free / GIB:.1f} GiB free",
        "give the container more, for example --shm-size=8g",
    )


def memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # In a container the machine's memory is not what may be used. Without a limit it says `max`.
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        total = min(total, int(text))
    return _ok_or(
        total >= 8 * GIB,
        "warn",
        "cpu and memory",
        f"{cores()} cores, {total / GIB:.0f} GiB",
        "use a machine with 8 GiB or more for the demo",
    )


def disk() -> list[Check]:
    """Room for checkpoints, and for Ray's spilling: Ray stops writing to a disk that is 95 %
    full.
    """
    checks = []
    for name, folder in (
        ("disk (here)", Path.cwd()),
        ("disk (temporary)", Path(tempfile.gettempdir())),
    ):
        usage = shutil.disk_usage(folder)
        # Both: on a large disk 10 GiB are less than the share at which Ray stops.
        roomy = usage.free >= 10 * GIB and usage.free >= 0.05 * usage.total
        checks.append(
            _ok_or(
                roomy,
                "warn",
                name,
                f"{folder}: {usage.free / GIB:.0f} of {usage.total / GIB:.0f} GiB free",
                "free 10 GiB and at least 5 % of the disk",
            )
        )
    return checks


def ports() -> Check:
    """Usual ports on loopback. A taken one is often another Ray cluster, and two on one machine
    disturb each other.
    """
    taken = []
    for port, owner in PORTS.items():
        with socket.socket() as probe:
            # As servers do: connections that just ended are no reason to call a port taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(f"{port} ({owner})")
    return _ok_or(
        not taken,
        "warn",
        "ports",
        f"in use: {', '.join(taken)}" if taken else "free: " + ", ".join(map(str, PORTS)),
        "stop what runs there (`ray stop` for a forgotten cluster), or give other ports",
    )


# In the order of the report; the folder of the cache before what is kept in it.
CHECKS: tuple[Callable[[], Check | list[Check]], ...] = (
    python,
    packages,
    accelerator,
    codecs,
    rendering,
    compiler,
    cache,
    compiled_code,
    memory,
    shared_memory,
    disk,
    ports,
)


def examine() -> list[Check]:
    """Run every check."""
    results: list[Check] = []
    for check in CHECKS:
        result = check()
        results += result if isinstance(result, list) else [result]
    return results

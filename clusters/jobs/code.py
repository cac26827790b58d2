"""What travels with a job: its documents, and our packages where they are not those of the image.

Ray unpacks the folder on every node that works for the job, and puts it first in PYTHONPATH. Only
the packages go, never what lies beside them (data, runs, an `.env`).
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import gwp
from gwp.errors import GwpError

Code = Literal["image", "project"]
PACKAGES = ("gwp", "pipelines", "serve", "clusters")
MOST_BYTES = 32 << 20
"""Our packages are a fiftieth of it: above, something lies in them that is no code."""
_PYTHONS = "__pycache__"


def fill(folder: Path, documents: Mapping[str, str], code: Code) -> None:
    """Write into `folder` what the job's working directory holds. documents: file name -> text."""
    for name, text in documents.items():
        (folder / name).write_text(text, encoding="utf-8")
    if code == "project":
        _copy(_root(), folder)


def _root() -> Path:
    """Where the packages lie that run here: a checkout, or where they were installed."""
    return Path(gwp.__file__).parents[1]


def _copy(root: Path, folder: Path) -> None:
    files = list(_files(root))
    size = sum(path.stat().st_size for path in files)
    if size > MOST_BYTES:
        largest = max(files, key=lambda path: path.stat().st_size)
        raise GwpError(
            f"--code project: the packages in {root} are {size >> 20} MiB, more than "
            f"{MOST_BYTES >> 20}; the largest file is {largest}: put it elsewhere"
        )
    for path in files:
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, target)
        except PermissionError as error:
            raise GwpError(
                f"--code project: {path} cannot be read; change its rights, or put it elsewhere"
            ) from error


def _files(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            parts = path.relative_to(root).parts
            left_out = any(part.startswith(".") or part == _PYTHONS for part in parts)
            # A link may lead to anywhere.
            if path.is_file() and not path.is_symlink() and not left_out:
                yield path

"""The folder of a render: what was written into it is known, so that nothing of an earlier render stays
and is applied, and nothing that somebody else wrote is lost.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from gwp.errors import GwpError

LIST = ".rendered"
"""Names of the files of the last render and their hashes. `kubectl apply -f .` passes it by."""
_SHOWN = 3


def require_free(folder: Path, *, force: bool) -> None:
    """GwpError when a render into `folder` would lose something: it holds what no render wrote, or
    what was changed since. force: others' files stay, changes of ours go
    """
    try:
        if folder.is_symlink() and not folder.exists():
            raise GwpError(f"--out {folder}: leads nowhere; remove this link, or give a folder")
        if folder.exists() and not folder.is_dir():
            raise GwpError(f"--out {folder}: a file; give a folder")
        if force or not folder.exists():
            return
        before = _before(folder)
        others = sorted(p.name for p in folder.iterdir() if p.name not in {LIST, *before})
        changed = sorted(
            n for n, digest in before.items() if _digest(folder / n) not in (None, digest)
        )
    except OSError as error:
        raise GwpError(f"--out {folder}: cannot be read ({error.strerror})") from error
    if others:
        raise GwpError(
            f"{folder} is not empty ({_some(others)}); give another --out, or --force, which leaves "
            "them there"
        )
    if changed:
        raise GwpError(
            f"{folder}: changed since they were rendered: {_some(changed)}; give another --out, or "
            "--force, which writes over them"
        )


def write(folder: Path, files: Mapping[str, str]) -> tuple[list[Path], list[str]]:
    """Write the files, name -> text; their paths, and the names of an earlier render that are gone.

    Either all files are new or, where writing fails, all are as before. GwpError when it fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        gone = sorted(set(_before(folder)) - set(files))
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
            for name, text in files.items():
                path = Path(new) / name
                path.write_text(text, encoding="utf-8")
                path.chmod(0o755 if name.endswith((".sh", ".sbatch")) else 0o644)
            digests = {name: _hash(text.encode()) for name, text in sorted(files.items())}
            (Path(new) / LIST).write_text(json.dumps(digests, indent=1))
            # What cannot be replaced is found before anything is.
            if taken := [name for name in files if (folder / name).is_dir()]:
                raise GwpError(f"--out {folder}: {_some(taken)}: a folder; remove it")
            for name in (*files, LIST):
                os.replace(Path(new) / name, folder / name)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise GwpError(f"--out {folder}: cannot be written ({error.strerror})") from error
    return [folder / name for name in files], gone


def _before(folder: Path) -> dict[str, str]:
    """Name -> hash of what the last render wrote there."""
    try:
        listed = json.loads((folder / LIST).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    # It may have been written by others, and leads to nothing outside of the folder.
    if not isinstance(listed, dict):
        return {}
    return {n: str(h) for n, h in listed.items() if Path(n).name == n and n not in ("", "..", LIST)}


def _digest(path: Path) -> str | None:
    """None when it is gone."""
    return _hash(path.read_bytes()) if path.is_file() else None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"

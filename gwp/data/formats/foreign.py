"""Forms of recordings that are known and not read, and robot sets where plain videos are taken."""

import re
from collections.abc import Iterable

from gwp.storage.names import shown

_FORMS = {
    r"\.zarr(\.zip)?(/|$)|(^|/)(\.zgroup|\.zarray|zarr\.json)$": "zarr (as UMI and diffusion policy write)",
    r"\.(bag|mcap|db3)$": "ROS bags",
    r"\.(npz|npy)$": "numpy files",
    r"\.(pkl|pickle)$": "pickles",
    r"\.(pt|pth)$": "PyTorch files",
    r"\.mat$": "MATLAB files",
    r"\.arrow$": "Arrow files of Hugging Face `datasets`",
    r"\.parquet$": "Parquet files without the meta/info.json of LeRobot",
    r"\.tfrecord": "TFRecord files without the features.json of TFDS",
}
_MARKS = re.compile(r"(^|/)(meta/info\.json|features\.json)$")
"""Files that robot sets have, and plain videos do not."""


def foreign_form(names: Iterable[str]) -> str:
    """Which known form some files are of, with one of them; nothing where it is none."""
    every = list(names)
    for pattern, form in _FORMS.items():
        found = re.compile(pattern, re.IGNORECASE)
        if name := next((name for name in every if found.search(name)), None):
            return f"{form} ({shown(name)})"
    return ""


def robot_sets_among(files: Iterable[str]) -> list[str]:
    """Folders of robot sets below a folder, however deep, by what they alone have."""
    folders = {
        name[: found.start()].rstrip("/") for name in files if (found := _MARKS.search(name))
    }
    return sorted(folders - {""})

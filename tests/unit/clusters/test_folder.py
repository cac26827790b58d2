"""The folder of a render: all files are new, or all as before."""

from pathlib import Path

import pytest

from clusters.folder import require_free, write
from gwp.errors import GwpError


def test_what_cannot_be_replaced_leaves_all_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder, {"a.yaml": "old", "b.yaml": "old"})
    (folder / "b.yaml").unlink()
    (folder / "b.yaml").mkdir()
    with pytest.raises(GwpError, match=r"b\.yaml: a folder"):
        write(folder, {"a.yaml": "new", "b.yaml": "new"})
    assert (folder / "a.yaml").read_text() == "old"
    (folder / "b.yaml").rmdir()
    require_free(folder, force=False)
    write(folder, {"a.yaml": "new", "b.yaml": "new"})
    assert (folder / "a.yaml").read_text() == "new"

"""The cache folder: one rule where it is, and never one that another user may write to."""

import ctypes
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gwp import cache_folder
from gwp.native import build

MASKS = (0o000, 0o002, 0o022, 0o077)
MACHINE = ("GWP_CACHE", "XDG_CACHE_HOME", "HOME")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A home, a folder for caches and one for ours, none of which is there or named."""
    found = {name: tmp_path / name.lower() for name in MACHINE}
    for name in MACHINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(found["HOME"]))
    cache_folder._private.cache_clear()
    return found


def test_the_nearest_variable_names_the_folder(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder.cache_folder("bundles") == places["HOME"] / ".cache/gwp/bundles"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/are/to/be/ignored")
    assert cache_folder.root() == places["HOME"] / ".cache/gwp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(places["XDG_CACHE_HOME"]))
    assert cache_folder.cache_folder("bundles") == places["XDG_CACHE_HOME"] / "gwp/bundles"
    monkeypatch.setenv("GWP_CACHE", str(places["GWP_CACHE"]))
    assert cache_folder.cache_folder("bundles") == places["GWP_CACHE"] / "bundles"
    monkeypatch.setenv("GWP_CACHE", "~/here")
    assert cache_folder.cache_folder("bundles") == places["HOME"] / "here/bundles"


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{mask:03o}")
def test_whatever_the_umask_only_this_user_writes_there(
    places: dict[str, Path], caplog: pytest.LogCaptureFixture, mask: int
) -> None:
    before = os.umask(mask)
    try:
        folder = cache_folder.cache_folder("native")
    finally:
        os.umask(before)
    assert folder == places["HOME"] / ".cache/gwp/native"
    for level in (folder, *folder.parents[:3]):
        assert level.stat().st_mode & 0o777 == 0o700
    assert not caplog.text


def unfit(case: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the folder `native` of the cache one that cannot be trusted or used."""
    native = root / "native"
    native.mkdir(parents=True)
    if case == "group":
        native.chmod(0o770)
    elif case == "everybody":
        native.chmod(0o1777)
    elif case == "a link to one of the group":
        native.rename(root / "elsewhere")
        (root / "elsewhere").chmod(0o775)
        native.symlink_to(root / "elsewhere")
    elif case == "another user":
        me = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    elif case == "a file":
        native.rmdir()
        native.write_text("")
    elif case == "a file above":
        native.rmdir()
        root.rmdir()
        root.write_text("")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("group", "may be written to by other users; run `chmod go-w"),
        ("everybody", "may be written to by other users"),
        ("a link to one of the group", "may be written to by other users"),
        ("another user", "belongs to user"),
        ("a file", "native cannot be"),
        ("a file above", "cannot be made (Not a directory)"),
    ],
)
def test_what_others_may_write_to_is_not_used_but_a_folder_of_our_own(
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    case: str,
    said: str,
) -> None:
    root = places["GWP_CACHE"]
    monkeypatch.setenv("GWP_CACHE", str(root))
    unfit(case, root, monkeypatch)
    folder = cache_folder.cache_folder("native")
    assert root not in folder.parents
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []
    # The same one for the whole process, and one line that says what to do.
    assert cache_folder.cache_folder("native") == folder
    (line,) = caplog.messages
    assert said in line
    assert "set GWP_CACHE to a folder of your own" in line
    assert str(folder) in line


def test_a_link_of_ours_to_a_folder_of_ours_is_followed(
    places: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = places["HOME"].parent / "disk"
    disk.mkdir(mode=0o700)
    places["HOME"].mkdir()
    (places["HOME"] / ".cache").symlink_to(disk)
    assert cache_folder.cache_folder("native").resolve() == disk / "gwp/native"
    assert not caplog.text


def test_root_makes_nothing_in_the_home_of_a_user(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after `sudo -E`, unless the folder is named."""
    places["HOME"].mkdir()
    if os.geteuid() == 0:
        os.chown(places["HOME"], 12345, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "and this is root" in cache_folder.problem_of("native")
    assert list(places["HOME"].iterdir()) == []
    monkeypatch.setenv("GWP_CACHE", str(places["HOME"] / "cache"))
    assert "and this is root" not in cache_folder.problem_of("native")


def test_without_a_home_there_is_a_folder_too(
    monkeypatch: pytest.MonkeyPatch, places: dict[str, Path]
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder.cache_folder("bundles").is_dir()


def test_a_temporary_folder_goes_with_the_process(tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles").chmod(0o777)
    script = "from gwp.cache_folder import cache_folder; print(cache_folder('bundles'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"GWP_CACHE": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    gone = Path(done.stdout.strip())
    assert gone.parent == tmp_path
    assert not gone.exists()


@pytest.mark.parametrize("case", ["group", "link", "another user"])
def test_a_library_that_others_may_have_written_is_compiled_again(
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    case: str,
) -> None:
    monkeypatch.setenv("GWP_CACHE", str(places["GWP_CACHE"]))
    library = build.compiled("pictures", ("-O0", "-std=c++17", "-shared", "-fPIC"))
    whole = library.read_bytes()
    library.write_bytes(b"another's code")
    if case == "group":
        library.chmod(0o770)
    elif case == "link":
        library.rename(tmp_path / "elsewhere")
        library.symlink_to(tmp_path / "elsewhere")
    elif os.geteuid() == 0:
        os.chown(library, 12345, -1)
    else:
        pytest.skip("only root gives files away")
    with caplog.at_level(logging.WARNING):
        again = build.compiled("pictures", ("-O0", "-std=c++17", "-shared", "-fPIC"))
    assert again == library
    assert library.read_bytes() == whole
    assert not library.is_symlink()
    assert library.stat().st_mode & 0o777 == 0o700
    assert "so it is not loaded but compiled again" in caplog.text
    assert ctypes.CDLL(str(library))

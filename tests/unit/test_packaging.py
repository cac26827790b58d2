"""What an installed package has: everything that the code reads beside itself."""

import tomllib

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOPS = ("gwp", "pipelines", "serve", "clusters")
# Notes for readers of the code; nothing reads them.
NOTES = {".md"}


def test_every_file_beside_the_code_is_packaged() -> None:
    """A wheel holds only what `package-data` names; from a checkout one sees no difference."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    unpackaged = set[str]()
    for top in TOPS:
        files = {path for path in (ROOT / top).rglob("*") if path.is_file()}
        code = {path for path in files if path.suffix in {".py", ".pyc"} | NOTES}
        named = {path for pattern in patterns.get(top, []) for path in (ROOT / top).glob(pattern)}
        unpackaged |= {str(path.relative_to(ROOT)) for path in files - code - named}
    assert not unpackaged


def test_every_dependency_has_an_exact_version_beside_its_range() -> None:
    def name(line: str) -> str:
        words = "".join(c if c.isalnum() or c in "-_." else " " for c in line)
        return words.split()[0].lower().replace("_", "-")

    extras = PROJECT["project"]["optional-dependencies"].values()
    required = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    pinned = {
        name(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    assert {name(line) for line in required} - {"gwp"} <= pinned

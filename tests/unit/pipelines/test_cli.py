"""The command line: light to start, one line for a user's mistake, honest exit codes."""

import json
import re
import subprocess
import sys
import tomllib
from argparse import Namespace
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from gwp.errors import GwpError
from pipelines import cli
from pipelines.verbs import doctor as doctor_verb
from tests.support.paths import ROOT


def run_gwp(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def verb_that(monkeypatch: pytest.MonkeyPatch, behaviour: Any) -> None:
    """Let `gwp doctor` behave so, to see what the command line makes of it."""

    def run(args: Namespace) -> int | None:
        return behaviour(args)

    monkeypatch.setattr(doctor_verb, "run_doctor", run)


def raising(error: BaseException) -> Any:
    def behaviour(args: Namespace) -> None:
        raise error

    return behaviour


def test_the_parser_is_built_without_anything_heavy() -> None:
    program = """
import json, sys
from pipelines.cli import build_parser
build_parser().format_help()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    loaded = set(json.loads(done.stdout))
    assert "pipelines" in loaded
    assert not loaded & {
        "torch",
        "ray",
        "mlflow",
        "deepspeed",
        "numpy",
        "pydantic",
        "yaml",
        "rich",
        "av",
        "pyarrow",
        "fsspec",
    }


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {verb} " in shown for verb in cli.VERBS)


def test_every_verb_module_is_listed() -> None:
    # A file, or a room for a verb of several parts; `arguments.py` is what several share.
    found = (ROOT / "pipelines" / "verbs").glob("[!_]*")
    assert {path.stem for path in found} - {"arguments"} == set(cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    assert "usage: gwp" in capsys.readouterr().out


def test_a_mistake_is_one_line_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(monkeypatch, raising(GwpError("no such bundle; give another path")))
    assert cli.main(["doctor"]) == cli.USER_ERROR
    assert capsys.readouterr().err == "gwp: error: no such bundle; give another path\n"


@pytest.mark.parametrize("words", [["--debug", "doctor"], ["doctor", "--debug"]])
def test_debug_shows_the_traceback(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(monkeypatch, raising(GwpError("broken")))
    assert cli.main(words) == cli.USER_ERROR
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("gwp: error: broken\n")


def test_every_line_of_a_long_mistake_is_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(monkeypatch, raising(GwpError("first\nsecond")))
    cli.main(["doctor"])
    assert capsys.readouterr().err == "gwp: error: first\ngwp: error: second\n"


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torch", "model"),
        ("ray.serve", "cluster"),
        ("metaworld", "sim"),
        ("ogbench", "ogbench"),
        ("gym_aloha", "aloha"),
        ("libero", "libero"),
    ],
)
def test_a_missing_package_names_the_extra(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(monkeypatch, raising(ModuleNotFoundError(f"No module named {module!r}", name=module)))
    assert cli.main(["doctor"]) == cli.USER_ERROR
    assert f"pip install 'gwp[{extra}]'" in capsys.readouterr().err


def test_a_missing_module_of_our_own_is_not_disguised(monkeypatch: pytest.MonkeyPatch) -> None:
    verb_that(
        monkeypatch,
        raising(ModuleNotFoundError("No module named 'gwp.nowhere'", name="gwp.nowhere")),
    )
    with pytest.raises(ModuleNotFoundError):
        cli.main(["doctor"])


def test_interruption_has_the_exit_code_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    verb_that(monkeypatch, raising(KeyboardInterrupt()))
    assert cli.main(["doctor"]) == 130


def test_the_verb_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    verb_that(monkeypatch, lambda args: 1)
    assert cli.main(["doctor"]) == 1
    verb_that(monkeypatch, lambda args: None)
    assert cli.main(["doctor"]) == 0


def test_config_check_tells_every_problem_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: TrainJbo\n")
    (tmp_path / "b.yaml").write_text("x: 1\n")
    done = run_gwp("config", "check", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))
    assert done.returncode == cli.USER_ERROR
    first, second = done.stderr.splitlines()
    assert first.startswith(f"gwp: error: {tmp_path}/a.yaml:1 kind: ")
    assert second.startswith(f"gwp: error: {tmp_path}/b.yaml:1 kind: ")


def test_config_check_takes_a_base_as_part_of_what_extends_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages = ROOT / "pipelines" / "stages"
    assert cli.main(["config", "check", *map(str, sorted(stages.glob("*.yaml")))]) == 0
    shown = capsys.readouterr().out
    assert f"{stages}/policy.yaml: ok (TrainJob)" in shown
    assert "tiny.yaml" not in shown


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = (
        f"set -o pipefail; {sys.executable} -m pipelines.cli config schema TrainJob | head -c 1"
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_optional_dependency_is_known_to_the_message() -> None:
    """What pyproject.toml puts into an extra, the message for a missing module sends people to."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    modules_of: dict[str, set[str]] = {}
    for module, distributions in packages_distributions().items():
        for distribution in distributions:
            modules_of.setdefault(distribution.lower(), set()).add(module)
    for extra in ("model", "cluster", "sim", "ogbench"):
        for line in extras[extra]:
            name = re.split(r"[^A-Za-z0-9_-]", line)[0].lower()
            assert name == "gwp" or modules_of.get(name, {name}) & set(cli.EXTRAS[extra]), line


def test_a_connection_that_breaks_is_no_reader_that_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: object) -> None:
        raise BrokenPipeError("the connection to a server")

    monkeypatch.setattr("pipelines.verbs.doctor.run_doctor", broken)
    with pytest.raises(BrokenPipeError):
        cli.main(["doctor"])

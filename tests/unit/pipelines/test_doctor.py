"""The doctor: every finding has a fix, and what it says about this machine is true."""

import json
import os
import shutil
import socket
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from gwp.native.build import compiled
from pipelines import cli, doctor
from pipelines.doctor import Check


def test_what_is_not_ok_says_how_to_mend_it() -> None:
    for check in doctor.examine():
        assert check.detail, check.name
        assert check.status == "ok" or check.fix, check.name


def test_python_and_versions_are_those_of_this_process() -> None:
    found = {check.name: check for check in [doctor.python(), *doctor.packages()]}
    assert found["python"].detail.startswith(".".join(map(str, sys.version_info[:3])))
    assert found["pyarrow"].detail == pa.__version__


def test_a_missing_package_is_required_or_not_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "PACKAGES", {"gwp-no-such-package": "model", "gwp-no-such-simulator": "sim"}
    )
    assert [check.status for check in doctor.packages()] == ["missing", "warn"]


def test_a_version_outside_the_range_is_told() -> None:
    assert doctor._fits("2.13.0+cpu", ">=2.10,<2.14")
    assert not doctor._fits("2.15.0", ">=2.10,<2.14")
    assert doctor._fits("1.0", "")


def test_a_taken_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: "a test"})
        check = doctor.ports()
    assert check.status == "warn"
    assert f"{port} (a test)" in check.detail


def test_no_compiler_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.compiler().status == "warn"


def test_a_renderer_that_fails_is_a_warning_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_RENDER", "raise SystemExit('no display at all')")
    check = doctor.rendering()
    assert check.status == "warn"
    assert "no display at all" in check.detail


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="needs POSIX")
def test_memory_is_that_of_the_machine_or_less() -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / doctor.GIB
    assert float(doctor.memory().detail.split(", ")[1].split()[0]) <= round(whole)


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("missing", 1)])
def test_exit_code_and_json(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Check("thing", status, "seen", "mend it"),))  # type: ignore[arg-type]
    assert cli.main(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "ok": code == 0,
        "checks": [{"name": "thing", "status": status, "detail": "seen", "fix": "mend it"}],
    }
    assert cli.main(["doctor"]) == code
    assert ("mend it" in capsys.readouterr().out) == (status != "ok")


def test_a_compiler_may_bring_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text('#!/bin/sh\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", f"{wrapper} g++")
    monkeypatch.setenv("GWP_CACHE", str(tmp_path / "cache"))
    assert (doctor.compiler().status, doctor.compiler().detail) == ("ok", str(wrapper))
    assert compiled("pictures").is_file()

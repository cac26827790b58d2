"""How many replicas a fleet needs, by hand from a profile; and the command line of both plans."""

import json
from pathlib import Path
from typing import Any

import pytest

from gwp.errors import GwpError
from pipelines.cli import main
from pipelines.plan.endpoint import plan_endpoint
from serve.config import ServeApp
from tests.unit.pipelines.jobs.test_stages import STAGES

ROWS = [(1, 30.0), (8, 60.0), (16, 90.0), (32, 400.0), (24, 150.0)]


def app(**fields: Any) -> ServeApp:
    return ServeApp.model_validate({"policy": "x", **fields})


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Robots that ask every half second, and what 99 % of them waited at most."""
    rows = [{"robots": n, "requests": 100, "p50": 1, "p95": 2, "p99": p99} for n, p99 in ROWS]
    crowds = {"bound_ms": 100, "robots": 16, "period_s": 0.5, "seconds": 10, "rows": rows}
    file = tmp_path / "act.json"
    file.write_text(json.dumps({"gwp05": {"crowds": crowds, "hardware": "a card"}}))
    return file


def test_replicas_by_hand(profile: Path) -> None:
    """16 robots in half a second are 32 requests a second, 80 % of it counts: 200 robots at 2 Hz
    are 400, so 15.6 replicas.
    """
    found = plan_endpoint(app(), profile, robots=200, rate_hz=2, bound_ms=100)
    assert found.one.requests_s == 32
    assert (found.requests_s, found.replicas, found.spare) == (400, 16, 17)
    assert not found.enough
    assert plan_endpoint(
        app(autoscaling={"max_replicas": 17}), profile, robots=200, rate_hz=2, bound_ms=100
    ).enough


def test_the_service_takes_its_part_of_the_bound(profile: Path) -> None:
    """Inline it takes 3.9 ms: 94 are enough for 16 robots. Gateways take 9.2 of them."""
    inline = plan_endpoint(app(), profile, 10, 1, bound_ms=94)
    behind = plan_endpoint(app(gateway={"replicas": 2}), profile, 10, 1, bound_ms=94)
    assert inline.one.requests_s == 32
    assert behind.one.requests_s == 16


def test_a_larger_crowd_behind_one_that_was_too_slow_does_not_count(profile: Path) -> None:
    assert plan_endpoint(app(), profile, 10, 1, bound_ms=200).one.requests_s == 48
    found = json.loads(profile.read_text())
    found["gwp05"]["crowds"]["rows"][1]["p99"] = 300.0
    profile.write_text(json.dumps(found))
    assert plan_endpoint(app(), profile, 10, 1, bound_ms=200).one.requests_s == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read .*gwp bench act --p99"),
        ("no json", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"gwp05": {"crowds": null}}', "no crowds of robots; make it by"),
    ],
)
def test_a_profile_that_tells_nothing_is_one_line(
    tmp_path: Path, text: str | None, words: str
) -> None:
    file = tmp_path / "act.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(GwpError, match=words):
        plan_endpoint(app(), file, 10, 1, 100)


def test_a_bound_that_nothing_keeps_is_told_with_what_helps(profile: Path) -> None:
    with pytest.raises(GwpError, match=r"took 30 ms, the service takes 3.9 more; allow more time"):
        plan_endpoint(app(), profile, 10, 1, bound_ms=20)


def test_the_command_line(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = tmp_path / "serve.yaml"
    serve.write_text(
        "kind: ServeApp\nversion: 1\npolicy: s3://b/p\nautoscaling: {max_replicas: 40}\n"
    )
    fleet = ["--profile", str(profile), "--robots", "200", "--rate", "2", "--p99", "100"]
    assert main(["plan", str(serve), *fleet]) == 0
    assert "replicas: 16 at 80% of that, 17 with one that may be lost" in capsys.readouterr().out
    assert main(["plan", str(serve), *fleet, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replicas"] == 16
    assert main(["plan", str(serve), "--robots", "4"]) == 2
    assert "planned with --profile, --rate, --p99, too" in capsys.readouterr().err

    stage = str(STAGES / "full" / "policy.yaml")
    assert main(["plan", stage, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["total"] > 30e9
    # Whoever asks before a start wants to know by the exit code.
    assert main(["plan", stage, "--gpu", "rtx4090"]) == 1
    assert "does not fit: a worker of policy needs" in capsys.readouterr().out
    prices = tmp_path / "prices.yaml"
    prices.write_text("h100: 2.5\ncore: 0.04\n")
    assert main(["plan", stage, "--prices", str(prices), "--workers", "16"]) == 0
    assert "price" in capsys.readouterr().out
    prices.write_text("- h100\n")
    assert main(["plan", stage, "--prices", str(prices)]) == 2
    assert "write lines such as `h100: 2.5`" in capsys.readouterr().err
    assert main(["plan", stage, "--decode-rate", "0"]) == 2
    assert "--decode-rate: must be above 0" in capsys.readouterr().err

"""Who is let in where, and what is known before anything starts."""

import os
import subprocess
import sys

import pytest
import ray
from ray.exceptions import AuthenticationError

from clusters.jobs import access
from clusters.jobs.access import connect, is_here
from gwp.errors import GwpError
from tests.support.dashboard import Cluster, serving
from tests.support.paths import ROOT


@pytest.mark.parametrize("version", ["2.59.1", "3.0.0"])
def test_a_cluster_of_another_ray_is_told_before_anything_starts(version: str) -> None:
    with serving(Cluster(version=version)) as cluster:
        words = f"runs Ray {version}, this is Ray {ray.__version__}: install .* --any-version"
        with pytest.raises(GwpError, match=words):
            connect(cluster.url)
        assert not cluster.asked
        connect(cluster.url, any_version=True)


def test_patches_of_one_ray_go_together() -> None:
    line = ".".join(ray.__version__.split(".")[:2])
    with serving(Cluster(version=f"{line}.99")) as cluster:
        connect(cluster.url)


def test_a_cluster_elsewhere_that_asks_for_no_token_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(Cluster()) as cluster:
        connect(cluster.url)
        # The server is on loopback, and stands for one that is not.
        monkeypatch.setattr(access, "_is_loopback", lambda url: False)
        with pytest.raises(GwpError, match=r"asks for no token: .* --insecure"):
            connect(cluster.url)
        connect(cluster.url, insecure=True)
        cluster.token = "t"
        with pytest.raises(GwpError, match="asks for a token: set RAY_AUTH_MODE=token"):
            connect(cluster.url)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://localhost:8265", True),
        ("http://[::1]:8265", True),
        ("http://192.0.2.1:8265", False),
        ("http://0.0.0.0:8265", False),
        ("http://no-such-host.invalid:8265", False),
    ],
)
def test_what_is_this_machine_alone(url: str, loopback: bool) -> None:
    assert access._is_loopback(url) == loopback


PROGRAM = """
import sys
from clusters.jobs.access import connect
from gwp.errors import GwpError
try:
    print(connect(sys.argv[1]).list_jobs())
except GwpError as error:
    print(error)
"""


def said(cluster: Cluster, **env: str) -> str:
    """Of a process of its own: Ray reads its token once."""
    command = [sys.executable, "-c", PROGRAM, cluster.url]
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"} | env
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    return found.stdout.strip()


def test_a_token_is_shown_only_to_a_cluster_that_asks_and_a_wrong_one_is_told() -> None:
    with serving(Cluster(token="right")) as cluster:
        assert said(cluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="right") == "[]"
        assert cluster.tokens[0] == ""
        wrong = said(cluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="wrong")
        assert "refuses the token in RAY_AUTH_TOKEN: it is that of another cluster" in wrong
        assert "wrong" not in wrong.replace("refuses", "")
        assert "\n" not in wrong


def test_the_address_that_is_given_is_meant_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(Cluster()) as other, serving(Cluster(addresses=("192.0.2.7",))) as meant:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", other.url)
        monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
        assert connect(meant.url).get_address() == meant.url
        assert not is_here(meant.url)
        assert os.environ["RAY_ADDRESS"] == "192.0.2.1:6379"
        assert connect(None).get_address() == other.url
        assert is_here(other.url)


def test_a_node_that_is_gone_says_nothing_of_where_the_others_are() -> None:
    with serving(Cluster(gone=("192.0.2.7", "192.0.2.8"))) as cluster:
        assert is_here(cluster.url)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (None, "no cluster: give --address"),
        ("head:8265", "give the cluster's dashboard, http://HOST:8265"),
        ("ray://head:10001", "give the cluster's dashboard"),
        ("http://", "give the cluster's dashboard"),
        ("http://head:port", "give the cluster's dashboard"),
        ("http://head:99999", "give the cluster's dashboard"),
        ("http://[::1", "give the cluster's dashboard"),
        ("http://me:secret@head:8265", "leave the password out"),
    ],
)
def test_addresses_that_are_none(address: str | None, words: str) -> None:
    with pytest.raises(GwpError, match=words) as refused:
        connect(address)
    assert "secret" not in str(refused.value)


def test_what_is_no_better_later_is_told_at_once() -> None:
    with (
        serving(Cluster()) as cluster,
        pytest.raises(GwpError, match=r"does not answer .*http:// or https://"),
    ):
        connect(cluster.url.replace("http://", "https://"))


def test_a_token_that_is_taken_no_more_is_one_line() -> None:
    def asked() -> None:
        raise AuthenticationError("no")

    with pytest.raises(GwpError, match="a token"):
        access.patiently(asked, "http://head:8265", "the cluster does not answer")


def test_what_does_not_answer_or_is_something_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "READY_S", 0.05)
    with serving(Cluster()) as cluster, pytest.raises(GwpError, match="is no dashboard of Ray"):
        connect(f"{cluster.url}/other/api/jobs/x")
    with pytest.raises(GwpError, match=r"the cluster does not answer .*check --address"):
        connect(cluster.url)

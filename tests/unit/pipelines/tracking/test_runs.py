"""A run is written once and whole, and the registry knows its policies."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gwp.errors import GwpError
from gwp.policy.locate import locate
from pipelines.tracking import registry as promote
from pipelines.tracking import runs as tracking


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One sqlite store for all tests: creating its schema takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


def _run(
    place: Path, name: str = "a", parents: tuple[str, ...] = (), params: dict | None = None
) -> str:
    return tracking.create_run("gwp", name, params or {}, str(place), parents)


def test_nested_settings_become_short_dotted_params(store: str, tmp_path: Path) -> None:
    settings = {
        "engine": {"zero_stage": 2},
        "sources": ["a", "b"],
        "init": None,
        "long": "x" * 900,
        "none": {},
    }
    run_id = _run(tmp_path, params=settings)
    params = tracking.client().get_run(run_id).data.params
    assert params["engine.zero_stage"] == "2"
    assert params["sources"] == '["a", "b"]'
    assert params["init"] == "null"
    assert params["none"] == "{}"
    assert len(params["long"]) == 500


def test_a_run_says_where_it_comes_from_and_what_it_reads(store: str, tmp_path: Path) -> None:
    parent = _run(tmp_path, "world")
    child = _run(tmp_path, "policy", (parent,))
    tracking.log_inputs(child, "f" * 64, samples=10, skipped=1, sources=["s3://b/set"])
    tracking.finish_run(child, {"checkpoint_uri": "s3://b/c"})
    run = tracking.client().get_run(child)
    assert run.data.tags["gwp.parent_run"] == run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["gwp.data_fingerprint"] == "f" * 64
    assert run.inputs.dataset_inputs[0].dataset.source == '["s3://b/set"]'
    assert (run.info.status, run.data.tags["checkpoint_uri"]) == ("FINISHED", "s3://b/c")


def test_a_parent_in_another_mlflow_is_named_and_not_asked(store: str, tmp_path: Path) -> None:
    parent = "0" * 32
    run_id = tracking.create_run("gwp", "policy/a", {}, str(tmp_path), (parent,))
    assert tracking.client().get_run(run_id).data.tags[tracking.PARENT_TAG] == parent


def test_a_server_that_is_away_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(tracking.UnansweredError, match="does not answer; start it"):
        _run(tmp_path)


def test_versions_are_per_bundle_and_aliases_move(store: str, tmp_path: Path) -> None:
    first = promote.register(str(tmp_path / "one"), "id1", "arm", tags={"family": "gwp0"})
    second = promote.register("s3://b/two", "id2", "arm")
    assert promote.register("s3://b/two/", "id2", "arm") == second != first
    for version, policy_id in ((first, "id1"), (second, "id2")):
        promote.promote("arm", version)
        entry = tracking.client().get_model_version_by_alias("arm", "champion")
        assert (str(entry.version), entry.tags["policy_id"]) == (version, policy_id)
    assert tracking.client().get_model_version("arm", first).source == str(tmp_path / "one")
    with pytest.raises(GwpError, match="check the name"):
        promote.promote("nobody", first)


def test_a_local_bundle_is_no_use_to_a_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(GwpError, match="export the policy to s3://"):
        promote.register(str(tmp_path), "id", "arm")


def test_finding_a_policy_needs_a_server_and_shows_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert locate("s3://b/bundle") == ("s3://b/bundle", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    with pytest.raises(GwpError, match="needs an MLflow server"):
        locate("models:/gwp@champion")

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] in (
                "Bearer secret",
                "Basic " + base64.b64encode(b"me:secret").decode(),
            )
            self.send_response(
                200 if known and self.path.endswith("alias?name=my+arm&alias=champion") else 401
            )
            self.end_headers()
            self.wfile.write(
                json.dumps(
                    {"model_version": {"version": "7", "source": "s3://b/seven", "tags": []}}
                ).encode()
            )

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}/")
        with pytest.raises(GwpError, match="set MLFLOW_TRACKING_USERNAME"):
            locate("models:/my arm@champion")
        for credentials in (
            {"MLFLOW_TRACKING_TOKEN": "secret"},
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "secret"},
        ):
            for name, value in credentials.items():
                monkeypatch.setenv(name, value)
            found, known = locate("models:/my arm@champion")
            assert (found, known["version"]) == ("s3://b/seven", "7")
        server.shutdown()
    with pytest.raises(GwpError, match="does not answer"):
        locate("models:/my arm@champion")


@pytest.mark.parametrize("code", [200, 404, 500])
@pytest.mark.parametrize("body", ["[]", "3", '"x"', '{"model_version": {}}', "<html>", "{"])
def test_whatever_a_server_answers_is_one_clear_error(
    code: int, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            # One byte more than comes.
            self.send_header("Content-Length", str(len(body) + (body == "{")))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(GwpError, match="MLFLOW_TRACKING_URI"):
            locate("models:/arm/1")
        server.shutdown()

"""The configuration of the endpoint: safe defaults, and a Serve file that Ray itself accepts."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

import serve
from pipelines.config.load import load_config
from serve.app import render
from serve.config import ServeApp

DEFAULT = Path(serve.__file__).with_name("serve.yaml")


def test_the_default_file_is_valid_and_listens_on_loopback_only() -> None:
    config = load_config(DEFAULT, ServeApp)
    assert config.host == "127.0.0.1"
    assert load_config(DEFAULT, ServeApp, ["policy=/tmp/p", "engine.slots=2"]).engine.slots == 2


def test_listening_to_the_network_needs_a_decision() -> None:
    with pytest.raises(ValidationError, match="reachable from the network"):
        ServeApp(policy="p", host="0.0.0.0")
    assert ServeApp(policy="p", host="0.0.0.0", api_keys_env="KEYS").host == "0.0.0.0"
    assert ServeApp(policy="p", host="0.0.0.0", allow_anonymous=True).host == "0.0.0.0"


@pytest.mark.parametrize(
    "wrong",
    [
        {"polcy": "p"},
        {"autoscaling": {"min_replicas": 3, "max_replicas": 2}},
        {"engine": {"slots": 0}},
        {"limits": {"max_message_mb": 64}},
        {"port": 70000},
        {"replica": {"dtype": "int8"}},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServeApp(**({"policy": "p"} | wrong))


def test_autoscaling_aims_at_full_batches_unless_told_otherwise() -> None:
    config = ServeApp(policy="p", engine={"slots": 6}, autoscaling={"max_replicas": 3})
    options = AutoscalingConfig(**config.autoscaling_options())
    assert (options.min_replicas, options.max_replicas, options.target_ongoing_requests) == (
        1,
        3,
        6,
    )
    told = ServeApp(policy="p", autoscaling={"target_ongoing_requests": 2}).autoscaling_options()
    assert told["target_ongoing_requests"] == 2


def test_the_rendered_file_is_one_that_serve_deploys_and_builds_the_same_application() -> None:
    config = ServeApp(
        policy="s3://b/p", name="arms", port=9000, engine={"slots": 4}, replica={"gpus": 1}
    )
    told = yaml.safe_load(yaml.safe_dump(render(config)))
    schema = ServeDeploySchema.model_validate(told)
    application = schema.applications[0]
    # Robots talk to gateways themselves: no proxy of Serve's listens.
    assert schema.proxy_location == "Disabled"
    assert (application.name, application.route_prefix) == ("arms", None)
    assert application.import_path == "serve.app:build"
    assert ServeApp.model_validate(application.args) == config


def test_no_secret_stands_in_the_rendered_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_KEYS", "top-secret")
    assert "top-secret" not in str(render(ServeApp(policy="p", api_keys_env="ROBOT_KEYS")))

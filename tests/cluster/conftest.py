"""The endpoint that cluster tests talk to."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from ray import serve

from clusters.mini import MiniCluster
from clusters.services import free_ports
from gwp import storage
from gwp.client import Client, Observation
from gwp.policy.policy import Policy
from gwp.protocol.handshake import short_name
from serve.app import deploy
from serve.config import ServeApp
from serve.warmup import observation_for
from tests.support.tiny import make_tiny_bundle

KEY = "robot-key"
# Before the cluster starts: gateways read their keys from the environment of their node.
os.environ["GWP_TEST_KEYS"] = f"other,{KEY}"


@dataclass
class Endpoint:
    config: ServeApp
    url: str
    folder: Path
    policy: Policy
    observation: Observation

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.config.port}"

    def client(self, **options: object) -> Client:
        return Client(self.url, api_key=KEY, **options)  # type: ignore[arg-type]

    def raw(self) -> dict[str, object]:
        """The observation as a stock client would write it."""
        images = {
            f"observation/{short_name(name)}": image
            for name, image in self.observation.images.items()
        }
        return {
            **images,
            "observation/state": self.observation.state.astype(np.float64),
            "prompt": "go",
            "seed": 3,
        }


@pytest.fixture(scope="module")
def endpoint(mini: MiniCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = make_tiny_bundle(tmp_path_factory.mktemp("bundle"))
    uri = f"{mini.bucket}/serve/bundle"
    storage.upload(folder, uri)
    policy = Policy.load(folder)
    config = ServeApp.model_validate(
        {
            "policy": uri,
            "port": free_ports(1)[0],
            "api_keys_env": "GWP_TEST_KEYS",
            "gateway": {"pool": "serve"},
            "replica": {"pool": "serve", "cpus": 0.5},
            "autoscaling": {"min_replicas": 2, "max_replicas": 2, "metrics_interval_s": 0.5},
            "engine": {"slots": 4},
            "limits": {"request_timeout_s": 20},
        }
    )
    embodiment = next(iter(policy.contract.embodiments.values()))
    yield Endpoint(
        config,
        deploy(config),
        folder,
        policy,
        replace(observation_for(embodiment), prompt="go", seed=3),
    )
    serve.shutdown()

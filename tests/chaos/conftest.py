"""What all tests of faults compare with; made once."""

import numpy as np
import pytest

from clusters.mini import MiniCluster
from pipelines.training.train import StageResult, train
from tests.support.dot import CALM, job, weights, write_recordings


@pytest.fixture(scope="session")
def recordings(mini: MiniCluster) -> str:
    """The set that they train on."""
    uri = f"{mini.bucket}/chaos/set"
    write_recordings(uri)
    return uri


@pytest.fixture(scope="session")
def calm(mini: MiniCluster, recordings: str) -> tuple[StageResult, dict[str, np.ndarray]]:
    """A run that nothing happened to, by two workers, with all its checkpoints; and its
    weights, which outlive what tests do to it.
    """
    result = train(job(mini, recordings, *CALM))
    return result, weights(result)

"""What the clusters need of Ray's private parts is there."""

import inspect

import pytest

from clusters.compat import drain, reread_access, server_version
from tests.support.dashboard import Cluster, serving


def test_ray_reads_its_access_variables_again() -> None:
    reread_access()


def test_nodes_are_drained_as_ray_does_it_itself() -> None:
    from ray._raylet import InnerGcsClient
    from ray.scripts import scripts

    assert callable(InnerGcsClient.drain_node)
    for call in (scripts.drain_node.callback, drain):
        source = inspect.getsource(call)
        assert "DrainNodeReason.Value(" in source
        assert ".drain_node(" in source
    from ray.core.generated import autoscaler_pb2

    assert autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION") == 2


def test_a_client_of_jobs_knows_the_version_of_its_cluster() -> None:
    from ray.job_submission import JobSubmissionClient

    with serving(Cluster(version="2.60.7")) as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_API_SERVER_ADDRESS", cluster.url)
        assert server_version(JobSubmissionClient(cluster.url)) == "2.60.7"

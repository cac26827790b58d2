"""The line on real recordings: sets in object storage -> stages -> bundle -> registry ->
endpoint -> the stock robot client.
"""

import json
import socket

import numpy as np
import pytest

from clusters.mini import MiniCluster
from gwp import storage
from gwp.data.plan.manifest import Manifest
from gwp.data.plan.plan import plan_slice
from gwp.data.source import Source
from gwp.errors import GwpError
from gwp.policy.policy import Policy
from pipelines.cli import main
from pipelines.config.load import load_config
from pipelines.evaluation.imagined import imagined
from pipelines.evaluation.open_loop import open_loop
from pipelines.evaluation.recordings import first_observation
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.registry import BEST_TAG, promote, register
from pipelines.tracking.runs import PARENT_TAG, client, metric_history
from pipelines.training.checkpoint.checkpoints import latest_committed
from pipelines.training.checkpoint.verdict import VERDICT
from pipelines.training.export import export
from pipelines.training.prepare import prepare
from pipelines.training.train import StageResult, train
from tests.support import paths
from tests.support.paths import ROOT

SHARED = paths.SHARED / "data"
STAGES = ROOT / "pipelines" / "stages"
# Judged by a process of its own, where neither workers nor decoders are.
HELD_OUT = (
    "{{sources: [{{uri: {}/g1, embodiment: g1, episodes: '5'}}], samples: 4, looked_at: 2, "
    "worker: {{cpus: 0.5, pool: serve}}}}"
)
G1_FIELDS = [
    "model.action_channels=32",
    "data.window={chunk: 16, stride: 4}",
    "data.embodiments={g1: {replan: 8, delta_mask: [" + ", ".join(["true"] * 26) + "]}}",
]

pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"real recordings are not at {SHARED}"),
    pytest.mark.timeout(900),
]


def sets_of(mini: MiniCluster, steps: int, sources: str, extra: list[str]) -> list[str]:
    return [
        f"run.storage={mini.bucket}/line",
        f"run.steps={steps}",
        f"run.checkpoint_every={steps}",
        "run.log_every=2",
        "engine.global_batch=8",
        "cluster.train_pool=train",
        "cluster.data_pool=data",
        f"data.sources={sources}",
        *extra,
    ]


def stage(name: str, mini: MiniCluster, steps: int, sources: str, extra: list[str]) -> StageResult:
    return train(
        load_config(STAGES / f"{name}.yaml", TrainJob, sets_of(mini, steps, sources, extra))
    )


def world_job(mini: MiniCluster) -> tuple[int, str, list[str]]:
    """Stage 1 on the clips, in windows of two shapes: steps, sources, fields."""
    shapes = "[{frames: 9, height: 32, width: 64}, {frames: 5, height: 64, width: 64}]"
    return (
        8,
        f"[{{uri: {mini.bucket}/clips}}]",
        [
            *G1_FIELDS[:1],
            "codec.fit_clips=32",
            "run.record_samples=true",
            f"data.buckets={shapes}",
            "data.batch_multiple=2",
        ],
    )


@pytest.fixture(scope="module")
def world(mini: MiniCluster) -> StageResult:
    """Stage 1 on the real clips."""
    storage.upload(SHARED / "clips", f"{mini.bucket}/clips")
    return stage("world", mini, *world_job(mini))


@pytest.fixture(scope="module")
def policy_run(mini: MiniCluster, world: StageResult) -> StageResult:
    """Stage 3 on five real episodes of the G1 (26 dimensions, one camera); the sixth is held
    out.
    """
    storage.upload(SHARED / "g1_bottle_v30", f"{mini.bucket}/g1")
    return stage(
        "policy",
        mini,
        8,
        f"[{{uri: {mini.bucket}/g1, embodiment: g1, episodes: '0:5'}}]",
        ["init=world", f"validation={HELD_OUT.format(mini.bucket)}", *G1_FIELDS],
    )


@pytest.fixture(scope="module")
def bundle(mini: MiniCluster, policy_run: StageResult) -> str:
    out = f"{mini.bucket}/line/bundles/g1"
    policy_id = export(policy_run.uri, out)
    version = register(out, policy_id, "g1", policy_run.run_id)
    promote("g1", version)
    return policy_id


def test_inspect_tells_what_the_set_holds(
    mini: MiniCluster, policy_run: StageResult, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", f"{mini.bucket}/g1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["episodes"] == 6
    assert told["frames"] == 1595


def test_stages_are_linked_and_tracked(world: StageResult, policy_run: StageResult) -> None:
    assert (world.steps, policy_run.steps) == (8, 8)
    assert policy_run.samples == 8 * 8
    losses = metric_history(policy_run.run_id, "loss")
    assert [step for step, _ in losses] == [1, 2, 4, 6, 8]
    assert all(np.isfinite(value) for _, value in losses)
    run = client().get_run(policy_run.run_id)
    assert run.data.tags[PARENT_TAG] == world.run_id
    assert run.data.params["run.steps"] == "8"
    assert run.data.tags["checkpoint_uri"].startswith(policy_run.uri)
    assert run.data.tags["gwp.data_fingerprint"]


def test_a_process_of_its_own_judges_the_last_checkpoint(
    mini: MiniCluster, policy_run: StageResult
) -> None:
    found = latest_committed(policy_run.uri)
    assert found is not None
    uri, manifest = found
    assert manifest.validation is not None
    assert storage.exists(f"{uri}/{VERDICT}")
    assert metric_history(policy_run.run_id, "validation_loss") == [(8, manifest.validation)]
    ((step, error),) = metric_history(policy_run.run_id, "validation/action_error")
    assert step == 8
    assert error > 0
    assert client().get_run(policy_run.run_id).data.tags[BEST_TAG] == uri
    pictures = [p.path for p in client().list_artifacts(policy_run.run_id, "images")]
    assert any("imagined" in path for path in pictures)


def test_workers_take_the_same_bucket_at_the_same_step(
    mini: MiniCluster, world: StageResult
) -> None:
    """Clips of two shapes, batches of 10 and 8 samples; both ranks share each of them."""
    steps, *_ = world_job(mini)
    job = load_config(STAGES / "world.yaml", TrainJob, sets_of(mini, *world_job(mini)))
    planned = plan_slice(
        Manifest.load(f"{world.uri}/manifest.parquet"), job.run.seed, 0, steps, job.plan_rules
    )
    assert len({len(batch) for batch in planned}) > 1
    assert world.samples == sum(map(len, planned))
    took = {
        name: json.loads(storage.read_bytes(f"{world.uri}/consumed/{name}"))
        for name in storage.list_files(f"{world.uri}/consumed")
    }
    for step, batch in enumerate(planned):
        halves = [took[f"a1/step_{step:06d}-rank{rank}.json"] for rank in (0, 1)]
        assert [len(half) for half in halves] == [len(batch) // 2] * 2
    assert not storage.list_files(f"{world.uri}/quarantine")


def test_a_run_stops_when_too_many_samples_are_broken(
    mini: MiniCluster, world: StageResult
) -> None:
    """All videos but one vanish after the run was prepared; the checkpoint stays, so that
    mended data go on from there.
    """
    steps, _, fields = world_job(mini)
    storage.upload(SHARED / "clips", f"{mini.bucket}/leaky")
    job = load_config(
        STAGES / "world.yaml",
        TrainJob,
        sets_of(
            mini,
            4 * steps,
            f"[{{uri: {mini.bucket}/leaky}}]",
            [
                *fields[:1],
                "codec=null",
                "text=null",
                "init=world",
                "run.name=leaky",
                "data.max_broken=0.5",
            ],
        ),
    )
    prepare(job)
    for name in storage.list_files(f"{mini.bucket}/leaky"):
        if "sintel" not in name:
            storage.remove(f"{mini.bucket}/leaky/{name}")
    with pytest.raises(
        GwpError,
        match=r"of \d+ samples were broken by step \d+, more than data.max_broken 0.5 "
        r".*quarantine names each",
    ):
        train(job)
    found = latest_committed(run_uri(job))
    assert found is not None
    assert 0 < found[1].step < 4 * steps
    names = storage.list_files(f"{run_uri(job)}/quarantine")
    reasons = [
        entry["reason"]
        for name in names
        for entry in json.loads(storage.read_bytes(f"{run_uri(job)}/quarantine/{name}"))
    ]
    assert len(reasons) >= 20
    assert all("not found" in reason and "leaky" in reason for reason in reasons)


def test_running_a_finished_stage_again_returns_at_once(
    mini: MiniCluster, world: StageResult
) -> None:
    again = stage("world", mini, *world_job(mini))
    assert (again.run_id, again.steps) == (world.run_id, world.steps)


def test_a_submitted_job_is_the_same_run(mini: MiniCluster, world: StageResult) -> None:
    """The job finds the run finished, says so and succeeds; a job that cannot start fails and
    is reported as failed.
    """
    words = [w for s in sets_of(mini, *world_job(mini)) for w in ("--set", s)]
    assert main(["submit", str(STAGES / "world.yaml"), *words]) == 0
    assert len(metric_history(world.run_id, "loss")) == 5
    assert (
        main(
            [
                "submit",
                str(STAGES / "world.yaml"),
                *words,
                "--set",
                "data.sources=[{uri: s3://no-such-bucket/x}]",
                "--set",
                "run.name=nowhere",
            ]
        )
        == 1
    )


def test_the_registered_policy_acts_on_a_held_out_episode(mini: MiniCluster, bundle: str) -> None:
    policy = Policy.load("models:/g1@champion")
    assert policy.id == bundle
    assert [s["stage"] for s in policy.bundle.lineage["stages"]] == ["policy", "world"]
    result = open_loop(policy, Source(uri=f"{mini.bucket}/g1", episodes="5"))
    assert result.windows > 5
    assert all(np.isfinite(x) and x > 0 for x in result.mse.named("mse").values())
    assert set(result.per_dim) == set(policy.bundle.embodiments["g1"].action_names)


def test_imagined_frames_have_the_canvas(mini: MiniCluster, bundle: str) -> None:
    policy = Policy.load("models:/g1@champion")
    clip, *_ = imagined(policy, Source(uri=f"{mini.bucket}/g1"), 1)
    assert clip.real.shape == clip.guess.shape == (5, 64, 64, 3)
    np.testing.assert_array_less(np.abs(clip.real[0].astype(float) - clip.guess[0]).mean(), 40)


def test_the_stock_client_is_answered_by_the_deployed_policy(
    mini: MiniCluster, bundle: str
) -> None:
    openpi = pytest.importorskip(
        "openpi_client.websocket_client_policy", reason="install openpi-client with --no-deps"
    )
    from ray import serve

    from serve.app import deploy
    from serve.config import ServeApp

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    config = ServeApp.model_validate(
        {
            "policy": "models:/g1@champion",
            "name": "g1",
            "port": port,
            "replica": {"pool": "serve", "cpus": 0.5},
            "gateway": {"pool": "serve"},
        }
    )
    try:
        deploy(config)
        robot = openpi.WebsocketClientPolicy("127.0.0.1", port)
        assert robot.get_server_metadata()["policy_id"] == bundle
        # With the limits that an endpoint derives for a robot that has none.
        policy = Policy.load("models:/g1@champion", guard=config.guard)
        observation = first_observation(policy, Source(uri=f"{mini.bucket}/g1", episodes="5"))
        camera, image = next(iter(observation.images.items()))
        reply = robot.infer(
            {camera: image, "observation.state": observation.state, "prompt": observation.prompt}
        )
        assert reply["policy_id"] == bundle
        assert reply["actions"].shape == (16, 26)
        np.testing.assert_allclose(reply["actions"], policy.act(observation).actions, atol=1e-3)
    finally:
        # The port belongs to Serve as a whole; who comes next chooses another.
        serve.shutdown()

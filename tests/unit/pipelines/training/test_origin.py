"""A run starts from another run by any of its names, from a policy of the registry or from a
folder; and says where its weights come from.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwp.errors import GwpError
from pipelines.jobs.resolve import init_uri
from pipelines.tracking import runs as tracking
from pipelines.tracking.registry import promote, register
from pipelines.training.export import _lineage
from pipelines.training.origin import moves, origin_of, parents_of
from pipelines.training.prepare import prepare
from tests.unit.pipelines.training.test_prepare import here, job  # noqa: F401


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One sqlite store for all tests: creating its schema takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


def weights(folder: Path, kind: str = "CasualWorldActionTransformer_MoT") -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model/config.json").write_text(json.dumps({"_class_name": kind}))
    return folder


def finished(run: Path, run_id: str | None) -> Path:
    final = weights(run / "final")
    (run / "job.json").write_text(
        json.dumps(
            {
                "config_hash": "c",
                "init": None,
                "job": {"stage": "world", "data": {"sources": [{"uri": "s"}]}},
            }
        )
    )
    note = {"run_id": run_id, "checkpoint": "c", "weights": "ema"}
    (final / "run.json").write_text(json.dumps(note))
    return final


def test_an_mlflow_run_is_its_finished_weights(store: str, here: Path) -> None:
    run = here / "runs/train/world"
    run_id = tracking.create_run("gwp", "world/a", {}, str(run))
    named = job(f"init={run_id}")
    with pytest.raises(GwpError, match=f"MLflow run {run_id} is {run}, which has no finished"):
        origin_of(named)
    final = finished(run, run_id)
    assert origin_of(named) == str(final)
    assert origin_of(job("init=world")) == str(final)
    assert parents_of(str(final)) == (run_id,)
    with pytest.raises(GwpError, match="check the name"):
        origin_of(job(f"init={'f' * 32}"))
    # A run of that very name goes first.
    (here / "runs/train" / run_id).mkdir()
    other = finished(here / "runs/train" / run_id, None)
    assert origin_of(named) == str(other)
    assert moves(run_id)
    assert not moves("world")


def test_a_run_that_is_no_training_is_said_so(store: str, here: Path) -> None:
    mlflow = tracking.client()
    found = mlflow.create_run(mlflow.create_experiment("others"))
    with pytest.raises(GwpError, match="is no training run of ours"):
        origin_of(job(f"init={found.info.run_id}"))


def test_mlflow_that_was_told_later_is_the_parent_all_the_same(here: Path) -> None:
    final = finished(here / "a", None)
    assert parents_of(str(final)) == ()
    (here / "a/run_id").write_text("f" * 32)
    assert parents_of(str(final)) == ("f" * 32,)
    assert parents_of(None) == ()


def test_a_registered_policy_is_its_bundle(store: str, here: Path) -> None:
    bundle = weights(here / "bundle")
    first = {"run": "s3://b/embodied", "stage": "embodied", "mlflow_run_id": "e" * 32}
    (bundle / "lineage.json").write_text(json.dumps({"checkpoint": "c", "stages": [first]}))
    version = register(str(bundle), "id", "arm")
    promote("arm", version)
    by_alias = job("init=models:/arm@champion")
    # No path of this folder.
    assert by_alias.init == "models:/arm@champion"
    with pytest.raises(GwpError, match="where there is no bundle any more"):
        origin_of(by_alias)
    (bundle / "MANIFEST.json").write_text("{}")
    for way in ("models:/arm@champion", f"models:/arm/{version}"):
        assert origin_of(job(f"init={way}")) == str(bundle)
    assert parents_of(str(bundle)) == ("e" * 32,)
    for wrong in ("models:/nobody@champion", "models:/arm@nobody", "models:/arm/99"):
        with pytest.raises(GwpError, match="check the name"):
            origin_of(job(f"init={wrong}"))
    with pytest.raises(GwpError, match="is not the name of a registered policy"):
        origin_of(job("init=models:/arm"))
    # Caches are made without MLflow.
    with pytest.raises(GwpError, match="give its folder here"):
        init_uri(by_alias)
    # The run goes on from what the alias meant, wherever it has moved since.
    began = prepare(by_alias)
    assert began.init == str(bundle)
    promote("arm", register(str(here / "another"), "other", "arm"))
    assert prepare(by_alias).init == str(bundle)
    lineage = _lineage(began.uri, "c", 8, {"config_hash": "c"})
    assert [stage["stage"] for stage in lineage["stages"]] == ["policy", "embodied"]


def test_weights_of_another_family_are_told_before_anything_starts(
    here: Path,
) -> None:
    final = weights(here / "other", "CasualWorldActionTransformer")
    with pytest.raises(GwpError, match="family gwp0, the job's model is gwp05"):
        origin_of(job(f"init={final}"))

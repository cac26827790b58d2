"""What stands at the top of the page of a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.training.checkpoint.table import COLUMNS
from pipelines.training.prepare import PreparedRun
from pipelines.training.tracked import RunRecord, note, record_of
from tests.unit.pipelines.training.test_stream import prepared


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    ready: PreparedRun = prepared(tmp_path_factory.mktemp("data") / "set")
    return record_of(ready)


def test_it_says_what_the_run_is_made_of(record: RunRecord) -> None:
    job = TrainJob.model_validate(record.params)
    text = note(record)
    for part in (
        f"**{record.name}**",
        f"| steps | {job.run.steps} of {job.engine.global_batch} samples, seed {job.run.seed} |",
        f"fingerprint `{record.fingerprint[:12]}`",
        f"{record.samples} samples of {len(record.sources)} sources",
        "| weights | not finished |",
        f"| starts from | {job.init} |",
    ):
        assert part in text, part
    assert "Checkpoints" not in text
    fresh = replace(record, params={**record.params, "init": None})
    assert "| starts from | random weights |" in note(fresh)
    assert "run `abc`, run `def`" in note(replace(record, parents=("abc", "def")))


@pytest.mark.parametrize("file", sorted(Path("pipelines/stages").rglob("*.yaml")), ids=str)
def test_every_stage_has_one(file: Path, record: RunRecord) -> None:
    try:
        job = load_config(file, TrainJob)
    except GwpError:
        pytest.skip("a part that others extend")
    text = note(replace(record, params=job.model_dump(mode="json")))
    family = job.model_config_.family
    assert f"| model | {family}, {job.engine.precision}, ZeRO {job.engine.zero_stage} |" in text


def test_it_says_what_came_of_it(record: RunRecord, tmp_path: Path) -> None:
    row = dict.fromkeys(COLUMNS) | {"step": 40, "validation": 0.123456, "state": "kept: best"}
    text = note(record, {"final_uri": "s3://b/final"}, [row])
    assert "| weights | `s3://b/final` |" in text
    assert text.endswith("| 40 |  |  |  | 0.1235 |  | kept: best |")

"""`gwp data plan`: how a stage would share its steps between samples with actions and without."""

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from tests.support.paths import ROOT
from tests.support.sets import write_v21


@pytest.mark.parametrize("batches", ["apart", "mixed"])
def test_it_says_how_many_batches_have_actions(
    batches: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_v21(tmp_path / "set", lengths=(30, 40))
    uri = tmp_path / "set"
    sources = f"[{{uri: {uri}, embodiment: arm, episodes: '0'}}, "
    sources += f"{{uri: {uri}, with_actions: false, episodes: '1'}}]"
    words = [
        f"data.sources={sources}",
        "data.embodiments={arm: {replan: 2}}",
        "data.window={chunk: 4, stride: 1}",
        "engine.global_batch=8",
        f"data.batches={batches}",
    ]
    stage = str(ROOT / "pipelines/stages/embodied.yaml")
    assert main(["data", "plan", stage, *(w for word in words for w in ("--set", word))]) == 0
    figures = json.loads(capsys.readouterr().out)
    labelled, alone = figures["with_actions"], figures["samples"] - figures["with_actions"]
    assert labelled == 30
    assert alone > 16
    if batches == "apart":
        assert figures["batches_with_actions"] == labelled // 8
        assert figures["batches_per_epoch"] == labelled // 8 + alone // 8
        assert figures["batches_of_both_kinds"] == 0
    else:
        assert figures["batches_per_epoch"] == (labelled + alone) // 8
        assert figures["batches_of_both_kinds"] > figures["batches_per_epoch"] / 2
        assert figures["batches_with_actions"] >= figures["batches_of_both_kinds"]

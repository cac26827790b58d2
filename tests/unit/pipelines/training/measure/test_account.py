"""What is told of steps, on one rank and on two: it adds up, and is the same on any number of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gwp.model.cost import tokens_of, training_flop
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.training.measure.account import memory
from pipelines.training.measure.clock import PHASES
from tests.support import ranks
from tests.support.ranks import CHUNK, SIZE, Rank

STEPS = range(4)
SOURCES = "data.sources=[{uri: a/left}, {uri: a/right}]"


def told(rank: Rank, micro: int) -> dict[str, Any]:
    """The figures of two steps, and of the two behind them."""
    rank.start(1, f"engine.micro_batch={micro}", SOURCES)
    account = rank.steps.account
    account.restart()
    found = []
    for first in (0, 2):
        losses = rank.take(STEPS[first : first + 2])
        broken, figures = account.figures(rank.ema, rank.steps.broken)
        found.append({"broken": broken, "losses": losses, "figures": figures})
    return {"told": found, "peak": account.peak, "work": account.work}


@pytest.mark.timeout(120)
def test_figures_add_up_and_do_not_depend_on_the_ranks(tmp_path: Path) -> None:
    alone = ranks.run(told, 1, tmp_path / "1", SIZE)
    pair = ranks.run(told, 2, tmp_path / "2", 2)
    for run, world in ((alone, 1), (pair, 2)):
        assert run["peak"] > 0
        for part in run["told"]:
            figures = part["figures"]
            parts = [figures[f"time/{phase}"] for phase in PHASES]
            assert sum(parts) == pytest.approx(figures["time/step"], rel=1e-9)
            assert all(seconds >= 0 for seconds in parts)
            for phase in ("transfer", "checkpoint", "validation", "data"):
                assert figures[f"time/{phase}"] == 0, phase
            for phase in ("forward", "backward", "optimiser"):
                assert figures[f"time/{phase}"] > 0, phase
            # Two steps of eight samples took as long as it says.
            seconds = 2 * SIZE / figures["speed/samples_per_s"]
            assert seconds == pytest.approx(2 * figures["time/step"], rel=0.05)
            each = figures["speed/tflop_per_s"]
            assert figures["speed/mfu"] == pytest.approx(each * 1e12 / run["peak"])
            assert figures["gradient_norm"] > 0
            assert 0 < figures["ema_distance"] < 1
        # The last step has actions: tokens and arithmetic of eight samples, whatever the ranks.
        config = load_config("pipelines/stages/world.yaml", TrainJob).model_config_
        tokens = tokens_of(config, (2, 6, 4), CHUNK)
        flop = training_flop(config, tokens, 7)
        assert run["work"] == [SIZE, SIZE * sum(tokens.values()), SIZE * flop, 0]
        assert world * figures["speed/tflop_per_s"] * seconds * 1e12 <= 2 * SIZE * flop * 1.0001
    for one, two in zip(alone["told"], pair["told"], strict=True):
        assert one["broken"] == two["broken"] > 0
        same = {n: v for n, v in one["figures"].items() if n.startswith(("loss/", "ema", "grad"))}
        assert same == pytest.approx(
            {name: two["figures"][name] for name in same}, rel=1e-3, abs=1e-5
        )
        assert {"loss/source/left", "loss/source/right"} <= same.keys()
    # A step of one mode alone, among two: the third has no actions.
    assert "loss/mode/video" in alone["told"][1]["figures"]


def test_memory_is_what_the_process_has_had() -> None:
    found = memory(torch.device("cpu"))
    assert found.keys() == {"memory/process_gib"}
    # Python with torch, in GiB and not in bytes or KiB.
    assert 0.05 < found["memory/process_gib"] < 1000

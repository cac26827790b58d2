"""Recipes for cards and numbers of GPUs: each fits what it is for, and the page says what it comes to."""

import re
from pathlib import Path

import pytest

from clusters.document.cluster import Cluster
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.placement.stage import misfits
from pipelines.plan.choice import fits
from pipelines.plan.machines import Assumed
from pipelines.plan.memory import USABLE
from pipelines.plan.page import FULL, card_of, page, recipe_files, recipe_plan
from pipelines.plan.show import show_stage
from pipelines.plan.stage import plan_stage
from pipelines.verbs.train import _dry
from tests.support.paths import ROOT

CARDS, SCALE = recipe_files("cards"), recipe_files("scale")
RECIPES = [*CARDS, *SCALE]
# Of the whole card, beside what no job may use: no GPU has held the sums yet.
LEFT = 0.06


def name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def test_there_is_one_for_each_card_and_number() -> None:
    sizes = {(card_of(p), "gwp0" in p.stem) for p in CARDS}
    assert sizes == {(gb, dense) for gb in (24, 48, 80) for dense in (True, False)}
    stages = [f"{s}-{n}" for s in ("embodied", "policy", "world") for n in (8, 32, 256)]
    assert [p.stem for p in SCALE] == stages


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_it_fits_its_card_with_room_to_spare_and_nothing_is_cheaper(path: Path) -> None:
    plan, assumed = recipe_plan(path)
    card = assumed.found.memory_gb
    assert card == card_of(path)
    assert plan.refused is None
    assert plan.memory.peak <= (USABLE - LEFT) * card * 1e9
    assert not plan.cheaper
    assert fits(load_config(path, TrainJob), card) is None


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_its_name_says_what_it_is(path: Path) -> None:
    job = load_config(path, TrainJob)
    if path in CARDS:
        family = "gwp0" if path.stem.endswith("gwp0") else "gwp05"
        assert job.model_config_.family == family
        assert job.recipe == ("lora" if "lora" in path.stem else "action-expert")
        assert job.cluster.workers == 1
    else:
        stage, _, workers = path.stem.rpartition("-")
        assert (job.stage, job.cluster.workers) == (stage, int(workers))
        # As many samples as the stage that it is made of.
        base = load_config(FULL / f"{stage}.yaml", TrainJob)
        seen = [j.run.steps * j.engine.global_batch for j in (job, base)]
        assert seen[0] == seen[1]


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_its_comment_names_a_command_that_plans_it(path: Path) -> None:
    (command,) = re.findall(r"`gwp train --plan ([^`]*)`", path.read_text())
    file, _, gpu = command.partition(" --gpu ")
    assert (ROOT / file).samefile(path)
    assert (gpu or "h100") == recipe_plan(path)[1].gpu
    assert "Computed, not measured" in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_it_runs_on_a_cluster_of_such_cards(path: Path) -> None:
    job = load_config(path, TrainJob)
    train = {"cpus": 96, "memory_gb": 1024, "gpus": 8, "gpu_memory_gb": card_of(path)}
    pools = {
        "head": {"cpus": 4, "memory_gb": 16},
        "train": train | {"max_nodes": 32},
        "data": {"cpus": 32, "memory_gb": 128, "max_nodes": 8},
    }
    mlflow = "https://mlflow.example.com"
    cluster = Cluster.model_validate(
        {"kind": "Cluster", "version": 1, "name": "gwp", "mlflow": mlflow, "pools": pools}
    )
    assert not [
        line for line in misfits(job, cluster, "slurm") if "pools" in line or "cluster" in line
    ]
    assert _dry(job)["trained"] == job.trained


def test_the_page_is_what_the_plans_say() -> None:
    written = (ROOT / "docs" / "recipes.md").read_text()
    assert written == page(), "run: python -m pipelines.plan > docs/recipes.md"


def test_the_plan_on_the_page_of_clusters_is_what_is_printed() -> None:
    plan = plan_stage(load_config(FULL / "policy.yaml", TrainJob))
    shown = show_stage(plan, Assumed())
    assert f"```text\n{shown}\n```" in (ROOT / "docs" / "clusters.md").read_text()

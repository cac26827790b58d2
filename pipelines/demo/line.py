"""The demo: from nothing to a served policy and a report, every step the real one and every
figure measured in this run.

mini-cluster -> demonstrations -> world -> embodied -> policy (one worker killed on the way) ->
bundle -> registry -> endpoint -> a fleet of robots in closed loop -> evaluation -> report.
"""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from clusters.mini import MiniCluster
from gwp import storage
from gwp.data.source import Source
from gwp.policy.policy import Policy
from gwp.sim.benchmarks import find
from pipelines.bench.latency import Latency, latency
from pipelines.config.load import load_config
from pipelines.console import event, progress
from pipelines.demo.endpoint import CHAMPION, serve_champion
from pipelines.demo.killer import Killer
from pipelines.demo.phases import Phase
from pipelines.demo.probe import measure
from pipelines.demo.size import BENCHMARK, FULL, PROMISED_S, QUICK, Plan, Size, plan, replan
from pipelines.demo.summary import CAVEATS, environment, fleet_figures, shortfalls, stage_figures
from pipelines.evaluation.fleet import FleetResult, Robot, run_fleet
from pipelines.evaluation.open_loop import OpenLoop, imagined, open_loop
from pipelines.evaluation.report import ReportData, write_report
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.pages.intervals import wilson
from pipelines.training.screen.shown import shown
from pipelines.training.train import StageResult, train

STAGES = Path(__file__).parents[1] / "stages"
# Loading a replica takes seconds, beside a crowd on two slow cores more than a minute.
_PATIENCE_S = 240.0
"""So long the crowd asks for a second replica."""
_SETTLE_S = 90.0
"""So long the fleet may take to become small again."""
_FLEET_S = 900.0
"""So long all episodes together may take."""

Baselines = dict[str, dict[str, tuple[int, int]]]
"""Agent -> task -> (successes, episodes)."""


def run_demo(folder: Path, quick: bool = False, promised_s: float = PROMISED_S) -> dict[str, Any]:
    """Run the whole line below `folder` and return the summary, also written to `summary.json`
    beside `report.html`.

    promised_s: how long it may take; on a machine too slow for that, less is done
    (`pipelines.demo.size.CUTS`). A quick demo is never cut. The summary's `shortfalls` has a
    line for everything that the demo set out to show and that did not happen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    seconds: dict[str, float] = {}
    with Phase("measuring this machine", seconds):
        chosen = _sized(quick, promised_s)
    # By its time: MLflow in this folder keeps the runs of earlier demos.
    demo = _Demo(folder, chosen, f"demo-{int(begin)}", begin, seconds)
    with ExitStack() as stack:
        summary = demo.run(stack)
    summary |= {
        "quick": quick,
        "seconds": round(time.time() - begin, 1),
        "phases_s": seconds,
    } | demo.plan.summary()
    summary["shortfalls"] = shortfalls(summary)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    report = write_report(folder, summary, demo.media)
    event(
        "report", path=str(report), summary=str(folder / "summary.json"), seconds=summary["seconds"]
    )
    for shortfall in summary["shortfalls"]:
        event("did not happen", what=shortfall)
    return summary


def _sized(quick: bool, promised_s: float) -> Plan:
    """Measure the machine, and say what it will do and how long that takes."""
    chosen = plan(QUICK, measure(), None) if quick else plan(FULL, measure(), promised_s)
    event("machine", **asdict(chosen.machine), expected_min=round(chosen.expected_s / 60, 1))
    _tell(chosen)
    return chosen


def _tell(chosen: Plan) -> None:
    for note in chosen.notes:
        event("cut, to keep the time", what=note)


class _Demo:
    """One demo on its way, made and run by `run_demo`.

    folder:  of the report and of the mini-cluster
    plan:    how much is recorded, trained and driven; less on the way where the machine turns
             out slower than its probe
    name:    of the experiment, and of the folder in the bucket
    begin:   of the demo, seconds since the epoch
    seconds: phase -> how long it took; filled while it runs
    media:   what the report draws; filled while it runs
    """

    def __init__(
        self, folder: Path, plan: Plan, name: str, begin: float, seconds: dict[str, float]
    ) -> None:
        self.folder = folder
        self.plan = plan
        self._full = QUICK if plan.promised_s is None else FULL
        self.name = name
        self._begin = begin
        self.seconds = seconds
        self.media = ReportData()
        self.benchmark = find(BENCHMARK)

    @property
    def size(self) -> Size:
        """How much of everything, as planned by now."""
        return self.plan.size

    def run(self, stack: ExitStack) -> dict[str, Any]:
        """The whole line; returns the summary. What runs until the end goes onto `stack`."""
        from serve.app import replica_states

        with self._phase("mini-cluster"):
            # From here on Ray, S3 and MLflow of the environment are those of this cluster.
            mini = stack.enter_context(MiniCluster(folder=self.folder / "mini"))
            mini.connect()
            self.bucket = f"{mini.bucket}/{self.name}"
        with self._phase("demonstrations"):
            self._record()
        results, killed = self._train()
        with self._phase("export and promote"):
            policy, version = self._promote(results["policy"])
        with self._phase("serve"):
            name, url = serve_champion()
        replan = policy.bundle.embodiments[self.benchmark.embodiment.name].replan
        # The fleet asks for the replicas itself, twice a second.
        fleet = self._fleet(url, replan, lambda: replica_states(name))
        with self._phase("evaluation"):
            judged, times, baselines = self._evaluate(policy)
        return self._summary(results, killed, policy, version, judged, times, baselines, fleet)

    def _phase(self, name: str) -> Phase:
        return Phase(name, self.seconds)

    def _promote(self, result: StageResult) -> tuple[Policy, Any]:
        """The stage's bundle as the registry's champion, read back from there, and its version."""
        from pipelines.tracking.registry import promote, register
        from pipelines.training.export import export

        bundle = storage.join(self.bucket, "bundles", "policy")
        policy_id = export(result.uri, bundle)
        version = register(bundle, policy_id, "gwp", result.run_id, {})
        promote("gwp", version, "champion")
        # By its alias, as the endpoint finds it: what is judged is what is served.
        return Policy.load(CHAMPION), version

    def _evaluate(self, policy: Policy) -> tuple[OpenLoop, Latency, Baselines]:
        """Errors on held-out recordings, milliseconds of a request, and what those who know
        nothing reach in closed loop. The studies go into the report alone.
        """
        from pipelines.evaluation.recordings import first_observation
        from pipelines.evaluation.simulation import BASELINES, baseline_success
        from pipelines.evaluation.studies import seams_study, steps_study

        size = self.size
        labelled = Source(uri=storage.join(self.bucket, "data", "policy-held-out"))
        # On recordings that no stage has seen.
        judged = open_loop(policy, labelled)
        self.media.actions = judged.trace
        self.media.imagined = imagined(policy, labelled, clips=len(size.tasks))
        times = latency(policy, first_observation(policy, labelled), size.latency_repeats)
        self.media.latency = {"act_ms": times.act_ms, "joint_ms": times.joint_ms}
        self.media.steps = [asdict(row) for row in steps_study(policy, labelled, (10, 4, 2, 1))]
        self.media.seams = asdict(seams_study(policy, labelled))
        tasks = list(size.tasks)
        # On the tasks of the fleet, so that its successes have something beside them.
        baselines: Baselines = {
            agent: baseline_success(
                self.benchmark, agent, tasks, size.baseline_episodes, size.max_steps
            )
            for agent in BASELINES
        }
        return judged, times, baselines

    def _record(self) -> None:
        from gwp.sim.record import record

        size = self.size
        data = storage.join(self.bucket, "data")
        # Seeds of the sets lie apart, so that none holds an episode of another.
        # The first two stages learn from pictures alone, so their sets carry no actions.
        sets = [
            ("world", size.world_tasks, size.world_episodes, 1000, False),
            ("embodied", size.tasks, size.embodied_episodes, 2000, False),
            ("policy", size.tasks, size.policy_episodes, 3000, True),
            ("policy-held-out", size.tasks, size.held_out, 4000, True),
        ]
        for name, tasks, episodes, seed, labelled in sets:
            total = episodes * len(tasks)
            with progress(f"record {name}", total) as bar:
                record(
                    storage.join(data, name),
                    self.benchmark,
                    list(tasks),
                    episodes,
                    seed,
                    with_actions=labelled,
                    workers=2,
                    max_steps=size.max_steps,
                    progress=bar.update,
                )

    def _train(self) -> tuple[dict[str, StageResult], dict[str, int]]:
        from pipelines.tracking.runs import metric_history

        results: dict[str, StageResult] = {}
        killed: dict[str, int] = {}
        # In this order: `init` of each file is the run before.
        for stage in ("world", "embodied", "policy"):
            count = getattr(self.size, f"{stage}_steps")
            sets = [
                f"run.storage={storage.join(self.bucket, 'runs')}",
                f"run.steps={count}",
                f"run.experiment={self.name}",
                # Two at least, so that a kill in the second half has one to resume from.
                f"run.checkpoint_every={min(self.size.checkpoint_every, count // 2)}",
                "run.log_every=5",
                "cluster.train_pool=train",
                "cluster.data_pool=data",
            ]
            job = load_config(STAGES / f"{stage}.yaml", TrainJob, sets)
            # Only where the recordings lie is not known to the files.
            recorded = {"uri": storage.join(self.bucket, "data", stage)}
            source = job.data.sources[0].model_copy(update=recorded)
            data = job.data.model_copy(update={"sources": (source,)})
            job = job.model_copy(update={"data": data})
            killer = Killer(run_uri(job), job.run.checkpoint_every) if stage == "policy" else None
            with self._phase(stage), shown(job):
                if killer:
                    killer.start()
                results[stage] = train(job)
            self.media.losses[stage] = metric_history(results[stage].run_id, "loss")
            killed = killer.result(results[stage].uri) if killer else {}
            if "resumed_from_step" in killed:
                self.media.resumed[stage] = [killed["killed_at_step"]]
            self._replan(list(results))
        return results, killed

    def _replan(self, done: Sequence[str]) -> None:
        """Cut what is still to come where the stages that are done took longer than expected."""
        before = self.plan
        stages_s = {stage: self.seconds[stage] for stage in done}
        self.plan = replan(before, self._full, stages_s, time.time() - self._begin)
        if self.plan.size != before.size:
            event(
                "slower than measured",
                times=round(self.plan.slowness, 2),
                expected_min=round(self.plan.expected_s / 60, 1),
            )
            _tell(self.plan)

    def _fleet(self, url: str, replan: int, replicas: Any) -> FleetResult:
        size = self.size
        robots = []
        for i in range(size.robots):
            # Seeds that neither recordings (1000 on) nor baselines (6000 and 7000 on) have.
            first = 9000 + 100 * i
            seeds = tuple(range(first, first + size.episodes_per_robot))
            # Two robots first, then everybody, so that replicas have a reason to come; and
            # until one has, the crowd asks.
            crowd = i >= 2
            robots.append(
                Robot(
                    f"robot-{i}",
                    size.tasks[i % len(size.tasks)],
                    seeds,
                    6.0 if crowd else 0.0,
                    gathers=crowd,
                )
            )
        total = size.robots * size.episodes_per_robot
        with self._phase("fleet"), progress("fleet: episodes", total) as bar:

            def follow(result: FleetResult) -> None:
                running = result.samples[-1][1] if result.samples else 0
                bar.update(len(result.episodes), requests=len(result.requests), replicas=running)

            fleet = run_fleet(
                url,
                robots,
                BENCHMARK,
                replan=replan,
                max_steps=size.max_steps,
                timeout_s=_FLEET_S,
                replicas=replicas,
                patience_s=_PATIENCE_S,
                settle_s=_SETTLE_S,
                on_event=follow,
            )
        event("replicas", **fleet.scaling)
        self.media.replicas = fleet.replicas
        self.media.fleet = [(r["t"], r["ms"]) for r in fleet.requests if r["error"] is None]
        return fleet

    def _summary(
        self,
        results: dict[str, StageResult],
        killed: dict[str, int],
        policy: Policy,
        version: Any,
        judged: OpenLoop,
        times: Latency,
        baselines: Baselines,
        fleet: FleetResult,
    ) -> dict[str, Any]:
        # The fleet's own episodes are the closed loop, beside each both baselines.
        success = fleet.success()
        closed: dict[str, dict[str, Any]] = {}
        for task, (won, episodes) in success.items():
            closed[task] = {
                "success": won / episodes,
                "success_95": wilson(won, episodes),
                "episodes": episodes,
            }
            self.media.closed_loop[task] = {"policy": (won, episodes)}
            for agent, result in baselines.items():
                agent_won, agent_episodes = result[task]
                closed[task][f"success_{agent}"] = agent_won / agent_episodes
                closed[task][f"success_{agent}_95"] = wilson(agent_won, agent_episodes)
                closed[task][f"episodes_{agent}"] = agent_episodes
                self.media.closed_loop[task][agent] = result[task]
        # Medians: on a busy machine single requests take several times as long.
        act = float(np.percentile(times.act_ms, 50))
        joint = float(np.percentile(times.joint_ms, 50))
        self.media.environment = environment()
        self.media.caveats = CAVEATS
        return {
            "stages": {
                name: stage_figures(result, self.media.losses[name])
                for name, result in results.items()
            },
            "resume": killed,
            "policy": {
                "id": policy.id,
                "version": str(version),
                "alias": "champion",
                "family": policy.settings.family,
            },
            "open_loop": {
                k: getattr(judged, k) for k in ("mse", "mse_hold", "mse_mean", "windows")
            },
            "closed_loop": closed,
            "steps": self.media.steps,
            "seams": self.media.seams,
            "latency": {"act_ms_p50": act, "joint_ms_p50": joint, "ratio": joint / act},
            "fleet": fleet_figures(fleet, self.size.robots),
            "environment": self.media.environment,
            "size": asdict(self.size),
        }

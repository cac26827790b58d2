"""The demo: from nothing to a served policy and a report, every step the real one and every
figure measured in this run.

mini-cluster -> demonstrations -> world -> embodied -> policy (one worker killed on the way) ->
bundle -> registry -> endpoint -> a fleet of robots in closed loop -> evaluation -> report.
"""

import json
import os
import signal
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from clusters.mini import MiniCluster
from gwp import storage
from gwp.data.source import Source
from gwp.policy.policy import Policy
from pipelines.config.load import load_config
from pipelines.console import event, progress
from pipelines.demo.probe import measure
from pipelines.demo.size import FULL, PROMISED_S, QUICK, Plan, Size, plan
from pipelines.demo.summary import CAVEATS, environment, fleet_figures, shortfalls, stage_figures
from pipelines.evaluation.fleet import FleetResult, Robot, run_fleet
from pipelines.evaluation.report import ReportData, write_report
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.training.train import StageResult, train
from pipelines.training.watch import resumptions, shown, worker_progress

STAGES = Path(__file__).parents[1] / "stages"
CAMERA = "observation.images.corner2"
# Loading a replica takes seconds, beside a crowd on two slow cores more than a minute.
_PATIENCE_S, _SETTLE_S, _FLEET_S = 240.0, 90.0, 900.0


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
    with _timed("measuring this machine", seconds):
        chosen = _sized(quick, promised_s)
    demo = _Demo(folder, chosen.size, f"demo-{int(begin)}", seconds)
    with ExitStack() as stack:
        summary = demo.run(stack)
    summary |= {
        "quick": quick,
        "seconds": round(time.time() - begin, 1),
        "phases_s": seconds,
    } | chosen.summary()
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
    for note in chosen.notes:
        event("cut, to keep the time", what=note)
    return chosen


class _Demo:
    def __init__(self, folder: Path, size: Size, name: str, seconds: dict[str, float]) -> None:
        self.folder, self.size, self.name, self.seconds = folder, size, name, seconds
        self.media = ReportData()

    def run(self, stack: ExitStack) -> dict[str, Any]:
        from pipelines.bench.latency import latency
        from pipelines.evaluation.open_loop import imagined, open_loop
        from pipelines.evaluation.recordings import first_observation
        from pipelines.evaluation.simulation import blind_success, random_success
        from pipelines.evaluation.studies import seams_study, steps_study
        from pipelines.tracking.registry import promote, register
        from pipelines.training.export import export
        from serve.app import deploy, replica_states
        from serve.config import ServeApp

        size = self.size
        with self._phase("mini-cluster"):
            mini = stack.enter_context(MiniCluster(folder=self.folder / "mini"))
            mini.connect()
            self.bucket = f"{mini.bucket}/{self.name}"
        with self._phase("demonstrations"):
            self._record()
        results, killed = self._train()
        run = results["policy"].uri
        with self._phase("export and promote"):
            bundle = storage.join(self.bucket, "bundles", "policy")
            policy_id = export(run, bundle)
            version = register(bundle, policy_id, "gwp", results["policy"].run_id, {})
            promote("gwp", version, "champion")
            policy = Policy.load("models:/gwp@champion")
        with self._phase("serve"):
            config = ServeApp.model_validate(
                {
                    "policy": "models:/gwp@champion",
                    "port": _free_port(),
                    "gateway": {"pool": "serve"},
                    "replica": {"pool": "serve", "cpus": 0.5},
                    "autoscaling": {
                        "min_replicas": 1,
                        "max_replicas": 3,
                        "target_ongoing_requests": 1.5,
                        "upscale_delay_s": 1.0,
                        "downscale_delay_s": 4.0,
                        "look_back_period_s": 2.0,
                        "metrics_interval_s": 0.5,
                    },
                    "limits": {"request_timeout_s": 30},
                }
            )
            url = deploy(config)
        fleet = self._fleet(
            url,
            policy.bundle.embodiments["metaworld-sawyer"].replan,
            lambda: replica_states(config.name),
        )
        with self._phase("evaluation"):
            labelled = Source(uri=storage.join(self.bucket, "data", "policy-held-out"))
            judged = open_loop(policy, labelled)
            self.media.actions = judged.trace
            self.media.imagined = imagined(policy, labelled, clips=len(size.tasks))
            times = latency(policy, first_observation(policy, labelled), size.latency_repeats)
            self.media.latency = {"act_ms": times.act_ms, "joint_ms": times.joint_ms}
            self.media.steps = [asdict(row) for row in steps_study(policy, labelled, (10, 4, 2, 1))]
            self.media.seams = asdict(seams_study(policy, labelled))
            tasks = list(size.tasks)
            baselines = {
                "random": random_success(tasks, size.baseline_episodes, size.max_steps),
                "blind": blind_success(tasks, size.baseline_episodes, size.max_steps),
            }
        return self._summary(results, killed, policy, version, judged, times, baselines, fleet)

    def _phase(self, name: str) -> Any:
        return _timed(name, self.seconds)

    def _record(self) -> None:
        from gwp.sim.record import record

        size, data = self.size, storage.join(self.bucket, "data")
        plan = [
            ("world", size.world_tasks, size.world_episodes, 1000, False),
            ("embodied", size.tasks, size.embodied_episodes, 2000, False),
            ("policy", size.tasks, size.policy_episodes, 3000, True),
            ("policy-held-out", size.tasks, size.held_out, 4000, True),
        ]
        for name, tasks, episodes, seed, labelled in plan:
            total = episodes * len(tasks)
            with progress(f"record {name}", total) as bar:
                record(
                    storage.join(data, name),
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

        size = self.size
        steps = {
            "world": size.world_steps,
            "embodied": size.embodied_steps,
            "policy": size.policy_steps,
        }
        results: dict[str, StageResult] = {}
        killed: dict[str, int] = {}
        for stage, count in steps.items():
            sets = [
                f"run.storage={storage.join(self.bucket, 'runs')}",
                f"run.steps={count}",
                f"run.experiment={self.name}",
                f"run.checkpoint_every={min(size.checkpoint_every, count // 2)}",
                "run.log_every=5",
                "cluster.train_pool=train",
                "cluster.data_pool=data",
            ]
            job = load_config(STAGES / f"{stage}.yaml", TrainJob, sets)
            source = job.data.sources[0].model_copy(
                update={"uri": storage.join(self.bucket, "data", stage)}
            )
            job = job.model_copy(
                update={"data": job.data.model_copy(update={"sources": (source,)})}
            )
            killer = _Killer(run_uri(job), job.run.checkpoint_every) if stage == "policy" else None
            with self._phase(stage), shown(job):
                if killer:
                    killer.start()
                results[stage] = train(job)
            self.media.losses[stage] = metric_history(results[stage].run_id, "loss")
            if killer and (killed := killer.result(results[stage].uri)):
                self.media.resumed[stage] = [killed["killed_at_step"]]
        return results, killed

    def _fleet(self, url: str, replan: int, replicas: Any) -> FleetResult:
        size = self.size
        robots = []
        for i in range(size.robots):
            seeds = tuple(range(9000 + 100 * i, 9000 + 100 * i + size.episodes_per_robot))
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
        open_loop: Any,
        latency: Any,
        baselines: dict[str, dict[str, tuple[int, int]]],
        fleet: FleetResult,
    ) -> dict[str, Any]:
        success = fleet.success()
        closed: dict[str, dict[str, Any]] = {}
        for task, (won, episodes) in success.items():
            closed[task] = {"success": won / episodes, "episodes": episodes}
            self.media.closed_loop[task] = {"policy": (won, episodes)}
            for agent, result in baselines.items():
                closed[task] |= {
                    f"success_{agent}": result[task][0] / result[task][1],
                    f"episodes_{agent}": result[task][1],
                }
                self.media.closed_loop[task][agent] = result[task]
        act, joint = (float(np.percentile(x, 50)) for x in (latency.act_ms, latency.joint_ms))
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
                k: getattr(open_loop, k) for k in ("mse", "mse_hold", "mse_mean", "windows")
            },
            "closed_loop": closed,
            "steps": self.media.steps,
            "seams": self.media.seams,
            "latency": {"act_ms_p50": act, "joint_ms_p50": joint, "ratio": joint / act},
            "fleet": fleet_figures(fleet, self.size.robots),
            "environment": self.media.environment,
            "size": asdict(self.size),
        }


class _Killer(threading.Thread):
    """Kills one training worker for good (SIGKILL), once, midway between two checkpoints."""

    def __init__(self, run: str, checkpoint_every: int) -> None:
        super().__init__(daemon=True)
        self._run, self._after = run, checkpoint_every + max(1, checkpoint_every // 4)
        self._killed: int | None = None
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.2):
            reports = worker_progress(self._run)
            if len(reports) > 1 and reports[-1]["step"] >= self._after:
                victim = reports[-1]
                os.kill(victim["pid"], signal.SIGKILL)
                self._killed = victim["step"]
                event("killed a training worker", pid=victim["pid"], step=victim["step"])
                return

    def result(self, run: str) -> dict[str, int]:
        """After the stage: the step of the kill and the one it resumed from; empty when either
        did not happen.
        """
        self._over.set()
        self.join()
        events = resumptions(run)
        if self._killed is None or not events:
            return {}
        return {"killed_at_step": self._killed, "resumed_from_step": int(events[-1]["step"])}


class _timed:  # noqa: N801  used as a function
    def __init__(self, name: str, seconds: dict[str, float]) -> None:
        self.name, self.seconds = name, seconds

    def __enter__(self) -> None:
        event(self.name)
        self.begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = round(time.monotonic() - self.begin, 1)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])

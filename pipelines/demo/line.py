"""The demo: from nothing to a served policy and a report, every step the real one and every
figure measured in this run.

mini-cluster -> demonstrations -> world -> embodied -> policy (one worker killed on the way) ->
bundle -> registry -> endpoint -> a fleet of robots in closed loop -> evaluation -> report.
"""

import json
import os
import platform
import signal
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clusters.mini import MiniCluster
from gwp import storage
from gwp.errors import GwpError
from gwp.policy.policy import Policy
from pipelines.config.load import load_config
from pipelines.console import event, progress
from pipelines.evaluation.fleet import FleetResult, Robot, run_fleet
from pipelines.evaluation.report import ReportData, write_report
from pipelines.jobs.train_job import TrainJob
from pipelines.training.prepare import run_uri
from pipelines.training.train import StageResult, train
from pipelines.training.watch import resumptions, shown, worker_progress

STAGES = Path(__file__).parent / "stages"
CAMERA = "observation.images.corner2"


@dataclass(frozen=True)
class Size:
    """How much of everything. Other tasks teach stage 1, other seeds of the same tasks stage 2."""

    tasks: tuple[str, ...] = ("button-press-topdown-v3", "window-open-v3", "handle-press-v3")
    world_tasks: tuple[str, ...] = (
        "drawer-open-v3",
        "door-open-v3",
        "button-press-v3",
        "window-close-v3",
    )
    world_episodes: int = 10
    embodied_episodes: int = 24
    policy_episodes: int = 20
    held_out: int = 3
    world_steps: int = 200
    embodied_steps: int = 300
    policy_steps: int = 700
    checkpoint_every: int = 150
    robots: int = 9
    episodes_per_robot: int = 4
    baseline_episodes: int = 12
    max_steps: int = 150
    latency_repeats: int = 30


FULL = Size()
QUICK = Size(
    tasks=("button-press-topdown-v3", "window-open-v3"),
    world_tasks=("drawer-open-v3", "door-open-v3"),
    world_episodes=6,
    embodied_episodes=8,
    policy_episodes=8,
    held_out=1,
    world_steps=40,
    embodied_steps=40,
    policy_steps=120,
    checkpoint_every=40,
    robots=8,
    episodes_per_robot=1,
    baseline_episodes=4,
    latency_repeats=10,
)


def run_demo(folder: Path, quick: bool = False) -> dict[str, Any]:
    """Run the whole line below `folder` and return the summary, also written to `summary.json`
    beside `report.html`.
    """
    size = QUICK if quick else FULL
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    demo = _Demo(folder, size, f"demo-{int(begin)}")
    with ExitStack() as stack:
        summary = demo.run(stack)
    summary["quick"], summary["seconds"] = quick, round(time.time() - begin, 1)
    summary["phases_s"] = demo.seconds
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    report = write_report(folder, summary, demo.media)
    event(
        "report", path=str(report), summary=str(folder / "summary.json"), seconds=summary["seconds"]
    )
    return summary


class _Demo:
    def __init__(self, folder: Path, size: Size, name: str) -> None:
        self.folder, self.size, self.name = folder, size, name
        self.media = ReportData()
        self.seconds: dict[str, float] = {}

    def run(self, stack: ExitStack) -> dict[str, Any]:
        from pipelines.evaluation import evaluate
        from pipelines.evaluation.studies import seams_study, steps_study
        from pipelines.tracking.registry import promote, register
        from pipelines.training.export import export
        from serve.app import deploy, replica_counts
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
            lambda: replica_counts(config.name),
        )
        with self._phase("evaluation"):
            labelled = storage.join(self.bucket, "data", "policy-held-out")
            open_loop = evaluate.open_loop(policy, labelled)
            self.media.actions = open_loop.trace
            self.media.imagined = evaluate.imagined(policy, labelled, clips=len(size.tasks))
            latency = evaluate.latency(
                policy, evaluate.first_observation(policy, labelled), size.latency_repeats
            )
            self.media.latency = {"act_ms": latency.act_ms, "joint_ms": latency.joint_ms}
            steps, seams = (
                steps_study(policy, labelled, (10, 4, 2, 1)),
                seams_study(policy, labelled),
            )
            self.media.steps, self.media.seams = [asdict(row) for row in steps], asdict(seams)
            baselines = {
                "random": evaluate.random_success(
                    list(size.tasks), size.baseline_episodes, size.max_steps
                ),
                "blind": evaluate.blind_success(
                    list(size.tasks), size.baseline_episodes, size.max_steps
                ),
            }
        return self._summary(results, killed, policy, version, open_loop, latency, baselines, fleet)

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
                    progress=lambda done, bar=bar: bar.update(done),
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
            if killer:
                killed = killer.result(results[stage].uri)
                self.media.resumed[stage] = [killed["killed_at_step"]]
        return results, killed

    def _fleet(self, url: str, replan: int, replicas: Any) -> FleetResult:
        size = self.size
        robots = []
        for i in range(size.robots):
            seeds = tuple(range(9000 + 100 * i, 9000 + 100 * i + size.episodes_per_robot))
            # Two robots first, then everybody, so that replicas have a reason to come.
            robots.append(
                Robot(f"robot-{i}", size.tasks[i % len(size.tasks)], seeds, 0.0 if i < 2 else 6.0)
            )
        total = size.robots * size.episodes_per_robot
        with self._phase("fleet"), progress("fleet: episodes", total) as bar:

            def follow(result: FleetResult) -> None:
                bar.update(
                    len(result.episodes),
                    requests=len(result.requests),
                    replicas=result.replicas[-1][1] if result.replicas else 0,
                )

            fleet = run_fleet(
                url,
                robots,
                replan=replan,
                max_steps=size.max_steps,
                timeout_s=400,
                replicas=replicas,
                settle_s=12.0,
                on_event=follow,
            )
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
        def stage(name: str) -> dict[str, Any]:
            losses = [value for _, value in self.media.losses[name]]
            return {
                "run_id": results[name].run_id,
                "steps": results[name].steps,
                "first_loss": float(np.mean(losses[:3])),
                "last_loss": float(np.mean(losses[-5:])),
                "samples": results[name].samples,
                "seconds": round(results[name].seconds, 1),
            }

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
        counts = [running for _, running, _ in fleet.replicas] or [0]
        act, joint = (float(np.percentile(x, 50)) for x in (latency.act_ms, latency.joint_ms))
        self.media.environment = environment()
        self.media.caveats = CAVEATS
        return {
            "stages": {name: stage(name) for name in results},
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
            "fleet": {
                "robots": self.size.robots,
                "requests": len(fleet.requests),
                "failed": fleet.failed,
                "p50_ms": fleet.latency_ms(50),
                "p99_ms": fleet.latency_ms(99),
                "replicas_min": min(counts),
                "replicas_max": max(counts),
                "errors": fleet.errors,
            },
            "environment": self.media.environment,
            "size": asdict(self.size),
        }


CAVEATS = [
    (
        "A small model on 64-pixel frames, trained for minutes on two CPU cores: that the line "
        "works, not how good published models are."
    ),
    (
        "Blind replays an expert's actions from another start without looking; what it wins says "
        "how much of a task needs no camera."
    ),
    (
        "One training seed. Success rates come from few episodes; the intervals beside them are "
        "Wilson intervals at 95 %."
    ),
    (
        "CPU latency of a tiny model: only the ratio of acting to joint decoding says something, "
        "and fixed costs make it small here."
    ),
    (
        "The fleet, its simulators and the replicas share the same cores, so request latency "
        "includes that contention."
    ),
]


class _Killer(threading.Thread):
    """Kills one training worker for good (SIGKILL), once, midway between two checkpoints."""

    def __init__(self, run: str, checkpoint_every: int) -> None:
        super().__init__(daemon=True)
        self._run, self._after = run, checkpoint_every + max(1, checkpoint_every // 4)
        self._killed: int | None = None

    def run(self) -> None:
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            reports = worker_progress(self._run)
            if len(reports) > 1 and reports[-1]["step"] >= self._after:
                victim = reports[-1]
                os.kill(victim["pid"], signal.SIGKILL)
                self._killed = victim["step"]
                event("killed a training worker", pid=victim["pid"], step=victim["step"])
                return
            time.sleep(0.2)

    def result(self, run: str) -> dict[str, int]:
        events = resumptions(run)
        if self._killed is None or not events:
            raise GwpError("the demo killed no worker or nothing resumed; the stage was too short")
        return {"killed_at_step": self._killed, "resumed_from_step": int(events[-1]["step"])}


class _timed:  # noqa: N801  used as a function
    def __init__(self, name: str, seconds: dict[str, float]) -> None:
        self.name, self.seconds = name, seconds

    def __enter__(self) -> None:
        event(self.name)
        self.begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = round(time.monotonic() - self.begin, 1)


def environment() -> dict[str, str]:
    """Hardware and versions, for the report."""
    from importlib.metadata import version

    import torch

    cpu = next(
        (
            x.split(":")[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if x.startswith("model name")
        ),
        "?",
    )
    packages = ("gwp", "torch", "ray", "deepspeed", "mlflow", "mujoco")
    return {
        "machine": f"{os.cpu_count()} cores, {cpu}",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{p: version(p) for p in packages},
    }


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])

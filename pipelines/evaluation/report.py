"""The report of a run: one HTML file that needs nothing beside it.

It shows what was measured, and says where something was not measured or did not happen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.pages import charts
from pipelines.pages.intervals import wilson
from pipelines.pages.render import Picture, Table, Tile, render

if TYPE_CHECKING:
    # A page is written without torch.
    from pipelines.evaluation.imagined import Clip


@dataclass
class ReportData:
    """What the report shows beside the headline numbers. An empty field's section says so."""

    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Stage -> (step, loss)."""
    resumed: dict[str, list[int]] = field(default_factory=dict)
    """Stage -> steps at which a worker was killed and the run went on from a checkpoint."""
    imagined: list["Clip"] = field(default_factory=list)
    actions: tuple[Sequence[str], np.ndarray, np.ndarray] | None = None
    """Names of the d action dimensions, recorded and predicted actions [n,d] in robot units, on
    held-out episodes."""
    closed_loop: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """Task -> agent (`policy`, `blind`, `random`) -> (successes, episodes)."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `pipelines.evaluation.studies.steps_study`."""
    seams: dict[str, Any] = field(default_factory=dict)
    """The result of `pipelines.evaluation.studies.seams_study`."""
    latency: dict[str, list[float]] = field(default_factory=dict)
    """`act_ms` (without the future) and `joint_ms` (with it): milliseconds of each chunk."""
    replicas: list[tuple[float, int, int]] = field(default_factory=list)
    """Seconds since the load began, replicas running, requests waiting or under way."""
    fleet: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the load began, latency of a request in milliseconds."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the run ran on and with: hardware, versions, configuration hashes."""
    caveats: list[str] = field(default_factory=list)
    """What the numbers do not say."""
    shortfalls: list[str] = field(default_factory=list)
    """What the run set out to show and did not; stands first. Empty: the summary's."""
    cut: list[str] = field(default_factory=list)
    """What was left out so that the run kept its time on this machine. Empty: the summary's."""


@dataclass(frozen=True)
class ImaginedClip:
    """What the cameras saw and what the model expected to see, as strips of frames."""

    title: str
    real: Picture
    imagined: Picture
    quality: str
    """How close they are; "" where they cannot be compared."""


@dataclass(frozen=True)
class Measurement:
    """A chart, and the same numbers as a table."""

    chart: Picture
    table: Table


def _solved(tasks: Mapping[str, Any], agent: str) -> str:
    """Episodes that an agent solved over all tasks. agent: "" the policy, "_random" chance."""
    # The summary holds rates; times their episodes they are whole numbers again.
    counted = [task for task in tasks.values() if task.get(f"episodes{agent}")]
    won = sum(task[f"success{agent}"] * task[f"episodes{agent}"] for task in counted)
    return f"{won:.0f} of {sum(task[f'episodes{agent}'] for task in counted)}"


def _milliseconds(value: float | None, decimals: int = 0) -> str:
    """A latency with its unit. None and NaN: no request was answered."""
    if value is None or np.isnan(value):
        return "not measured"
    return f"{value:.{decimals}f} ms"


def headline(summary: Mapping[str, Any]) -> list[Tile]:
    """The figures a reader wants first, from what `gwp demo` writes as `summary.json`."""
    tiles: list[Tile] = []
    # A tile only where the run got that far: nothing here is filled in.
    if tasks := summary.get("closed_loop"):
        remark = f"{len(tasks)} tasks; acting at random: {_solved(tasks, '_random')}"
        tiles.append(Tile("episodes solved in closed loop", _solved(tasks, ""), remark))
    if error := summary.get("open_loop"):
        remark = (
            f"mean, squared robot units; holding still {error['mse_hold']:.3g}, "
            f"the mean action {error['mse_mean']:.3g}"
        )
        tiles.append(Tile("action error on held-out episodes", f"{error['mse']:.3g}", remark))
    if latency := summary.get("latency"):
        joint = _milliseconds(latency["joint_ms_p50"], 1)
        remark = f"joint with the future: {joint}, {latency['ratio']:.2f} times as long"
        tiles.append(Tile("to act, median", _milliseconds(latency["act_ms_p50"], 1), remark))
    if fleet := summary.get("fleet"):
        tiles.append(_fleet_tile(fleet))
    # Killed and not resumed is a result too, and one that must not look like success.
    if resume := summary.get("resume"):
        step = resume.get("resumed_from_step")
        remark = "and nothing resumed" if step is None else f"and resumed from step {step}"
        tiles.append(Tile("a worker was killed", f"step {resume['killed_at_step']}", remark))
    if stages := summary.get("stages"):
        steps = sum(stage["steps"] for stage in stages.values())
        seconds = sum(stage["seconds"] for stage in stages.values())
        tiles.append(Tile("training steps", str(steps), f"{len(stages)} stages, {seconds:.0f} s"))
    if policy := summary.get("policy"):
        remark = f"{policy['family']}, {policy['alias']}, id {policy['id'][:12]}"
        tiles.append(Tile("policy served", f"version {policy['version']}", remark))
    if "seconds" in summary:
        remark = "quick variant" if summary.get("quick") else ""
        tiles.append(Tile("for the whole line", f"{summary['seconds'] / 60:.1f} min", remark))
    return tiles


def _fleet_tile(fleet: Mapping[str, Any]) -> Tile:
    percentiles = f"p50 {_milliseconds(fleet['p50_ms'])}, p99 {_milliseconds(fleet['p99_ms'])}"
    # Equal: no replica came or went while the fleet ran.
    low = fleet["replicas_min"]
    high = fleet["replicas_max"]
    count = f"{low} to {high} replicas" if low != high else f"replicas: {low}"
    remark = f"{fleet['robots']} robots; {percentiles}; {count}"
    failed = f"{fleet['failed']} of {fleet['requests']}"
    return Tile("requests of the fleet failed", failed, remark)


def cut_lines(cuts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was made smaller, in words.

    cuts: each with the `name` of a size, its `full` value and the value that it was `cut` to
    """
    lines = [f"{cut['name']} {cut['cut']} instead of {cut['full']}" for cut in cuts]
    return [line.replace("_", " ") for line in lines]


def _losses(media: ReportData) -> Picture | None:
    curves = {stage: points for stage, points in media.losses.items() if points}
    if not curves:
        return None
    # For those who do not see the picture: where each curve begins and ends.
    ends = [
        f"{stage} from {points[0][1]:.3g} at step {points[0][0]} to {points[-1][1]:.3g} "
        f"at step {points[-1][0]}"
        for stage, points in curves.items()
    ]
    return Picture(charts.losses(curves, media.resumed), f"Loss over steps: {'; '.join(ends)}.")


def psnr(real: np.ndarray, imagined: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 frames, dB; the mean over frames of the same shape."""
    difference = real.astype(np.float64) - imagined.astype(np.float64)
    error = np.square(difference).mean(axis=tuple(range(1, real.ndim)))
    # 1e-10 keeps two equal frames finite, at 148 dB.
    return float((10 * np.log10(255.0**2 / np.maximum(error, 1e-10))).mean())


def _imagined(title: str, real: np.ndarray, imagined: np.ndarray) -> ImaginedClip:
    """real, imagined: uint8 [T,H,W,3]."""
    quality = ""
    # One frame has no future, and frames of other shapes cannot be compared.
    if len(real) > 1 and real.shape == imagined.shape:
        # Frame 0 was given. Whoever repeats it is right wherever nothing moves.
        still = np.broadcast_to(real[:1], real[1:].shape)
        quality = (
            f"PSNR of the future frames {psnr(real[1:], imagined[1:]):.1f} dB; "
            f"repeating the first frame would give {psnr(real[1:], still):.1f} dB."
        )
    return ImaginedClip(
        title=title,
        real=Picture(charts.strip(real), f"{title}: {len(real)} real frames"),
        imagined=Picture(charts.strip(imagined), f"{title}: {len(imagined)} imagined frames"),
        quality=quality,
    )


def _actions(media: ReportData) -> Picture | None:
    if media.actions is None:
        return None
    names = ", ".join(media.actions[0])
    alt = f"Recorded and predicted actions over control steps: {names}."
    return Picture(charts.actions(*media.actions), alt)


def _rate(successes: int, episodes: int) -> str:
    low, high = wilson(successes, episodes)
    return f"{successes} of {episodes} ({100 * low:.0f} to {100 * high:.0f} %)"


def closed_loop_figure(results: Mapping[str, Mapping[str, tuple[int, int]]]) -> Measurement | None:
    """Rates with their 95 % intervals; None where nothing was run.

    results: task -> agent -> (successes, episodes)
    """
    if not results:
        return None
    # In order of appearance over all tasks: an agent need not have run on each.
    agents = list(dict.fromkeys(agent for by_agent in results.values() for agent in by_agent))
    rows = []
    for task, by_agent in results.items():
        cells = [_rate(*by_agent[agent]) if agent in by_agent else "not run" for agent in agents]
        rows.append([task, *cells])
    alt = "Success rate per task and agent, as in the table below."
    return Measurement(Picture(charts.closed_loop(results), alt), Table(["task", *agents], rows))


def _percentiles(milliseconds: Sequence[float]) -> list[str]:
    return [f"{np.percentile(milliseconds, q):.1f}" for q in (50, 95, 99)]


def _latency(latency: Mapping[str, Sequence[float]]) -> Measurement | None:
    names = {"act_ms": "act: actions only", "joint_ms": "joint: actions and future"}
    # Median and percentiles of nothing would be NaN, so empty ones are left out.
    samples = {names.get(key, key): values for key, values in latency.items() if len(values)}
    if not samples:
        return None
    ratio = ""
    if latency.get("act_ms") and latency.get("joint_ms"):
        times = float(np.median(latency["joint_ms"]) / np.median(latency["act_ms"]))
        ratio = f"The joint mode takes {times:.2f} times as long as acting (medians of this run)."
    alt = "Milliseconds of each chunk, with and without the future; percentiles are below."
    rows = [[name, str(len(ms)), *_percentiles(ms)] for name, ms in samples.items()]
    header = ["mode", "chunks", "p50, ms", "p95, ms", "p99, ms"]
    return Measurement(Picture(charts.latency(samples), alt, ratio), Table(header, rows))


def _steps_table(steps: Sequence[Mapping[str, Any]]) -> Table:
    """What fewer solver steps cost: rows of `steps_study`, the most steps first."""
    # The first row is the side with the most steps, with which others are compared.
    header = [
        "solver steps",
        "one chunk, ms",
        "error against recorded actions, squared robot units",
        f"difference to {steps[0]['steps']} steps, deviations",
    ]
    rows = [
        [str(row["steps"]), f"{row['ms']:.1f}", f"{row['mse']:.4f}", f"{row['rms']:.3f}"]
        for row in steps
    ]
    return Table(header, rows)


def _seams_table(seams: Mapping[str, Any]) -> Table:
    """Jumps where a late chunk takes over: the result of `seams_study`."""
    # What is possible at best, then the two ways to go over.
    names = {
        "inside": "inside a chunk",
        "chunked": "real-time chunking",
        "naive": "naive switching",
    }
    columns = {
        "position": "position, mean",
        "position_p95": "position, p95",
        "velocity": "velocity per step, mean",
        "velocity_p95": "velocity per step, p95",
    }
    header = [f"{seams['seams']} seams, {seams['delay']} steps late", *columns.values()]
    rows = []
    for key, name in names.items():
        rows.append([name, *(f"{seams[key][column]:.3f}" for column in columns)])
    return Table(header, rows)


def _fleet(media: ReportData) -> Measurement | None:
    if not (media.replicas or media.fleet):
        return None
    rows = []
    if media.replicas:
        # Largest between start and end: whether replicas came and went.
        counts = [running for _, running, _ in media.replicas]
        text = f"{counts[0]} at the start, at most {max(counts)}, {counts[-1]} at the end"
        rows.append(["replicas", text])
    if media.fleet:
        p50, p95, p99 = _percentiles([ms for _, ms in media.fleet])
        text = f"{len(media.fleet)} answered: p50 {p50} ms, p95 {p95} ms, p99 {p99} ms"
        rows.append(["requests", text])
    alt = "Replicas, requests under way and latency over time; summed up below."
    return Measurement(Picture(charts.fleet(media.replicas, media.fleet), alt), Table((), rows))


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    media: ReportData,
    title: str = "GigaWorld-Policy: the whole line",
) -> Path:
    """Write `folder/report.html` and return its path.

    summary: what `headline` reads, and where `media` has none, `shortfalls` (sentences) and `cut`
    (as in `cut_lines`); any part of it may be absent
    """
    studies = []
    if media.steps:
        studies.append(_steps_table(media.steps))
    if media.seams:
        studies.append(_seams_table(media.seams))
    page = render(
        "report.html.j2",
        title=title,
        # What did not work stands before every figure.
        shortfalls=media.shortfalls or summary.get("shortfalls", []),
        cut=media.cut or cut_lines(summary.get("cut", [])),
        headline=headline(summary),
        trained=[stage for stage, points in media.losses.items() if points],
        losses=_losses(media),
        imagined=[_imagined(clip.title, clip.real, clip.guess) for clip in media.imagined],
        actions=_actions(media),
        closed_loop=closed_loop_figure(media.closed_loop),
        latency=_latency(media.latency),
        studies=studies,
        fleet=_fleet(media),
        fleet_errors=summary.get("fleet", {}).get("errors", []),
        environment=Table((), list(media.environment.items())),
        caveats=media.caveats,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    # Only now: when rendering fails, an earlier report stays.
    path.write_bytes(page)
    return path

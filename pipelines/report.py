"""The report of a run: one HTML file that needs nothing beside it, and says where something was not measured."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import report_charts as charts
from pipelines.report_charts import wilson


@dataclass
class ReportData:
    """What the report shows beside the headline numbers. Whatever is left empty, its section says so."""

    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Stage -> (step, loss)."""
    resumed: dict[str, list[int]] = field(default_factory=dict)
    """Stage -> steps at which a worker was killed and the run went on from a checkpoint."""
    imagined: list[tuple[str, np.ndarray, np.ndarray]] = field(default_factory=list)
    """Title, real future, imagined future: uint8 [T,H,W,3] each; frame 0 is what the model was given."""
    actions: tuple[Sequence[str], np.ndarray, np.ndarray] | None = None
    """Names of the d action dimensions, recorded and predicted actions [n,d] in robot units, on held-out episodes."""
    closed_loop: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """Task -> agent (`policy`, `blind`, `random`) -> (successes, episodes)."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `pipelines.studies.steps_study`."""
    seams: dict[str, Any] = field(default_factory=dict)
    """What `pipelines.studies.seams_study` found."""
    latency: dict[str, list[float]] = field(default_factory=dict)
    """`act_ms` (the future is not generated) and `joint_ms` (it is): milliseconds of each chunk."""
    replicas: list[tuple[float, int, int]] = field(default_factory=list)
    """Seconds since the load began, replicas running, requests waiting or under way."""
    fleet: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the load began, latency of a request in milliseconds."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the run ran on and with: hardware, versions, configuration hashes."""
    caveats: list[str] = field(default_factory=list)
    """What the numbers do not say."""
    shortfalls: list[str] = field(default_factory=list)
    """What the run set out to show and did not; stands first."""
    cut: list[str] = field(default_factory=list)
    """What was left out so that the run kept its time on this machine."""


_LONG_VALUE = 10

_LINE = (
    ("data", "videos and robot episodes in object storage"),
    ("ingest", "Ray Data streams and decodes"),
    ("world", "stage 1: how videos go on"),
    ("embodied", "stage 2: what actions do"),
    ("policy", "stage 3: which actions come next"),
    ("bundle", "one artefact, one identity"),
    ("fleet", "Ray Serve answers robots"),
)

_STYLE = """
:root { --ink: #22303c; --muted: #6b7885; --rule: #e1e6ea; --soft: #f5f7f9; --accent: #2f6f9f; --warm: #c8693f; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 15px/1.55 Inter, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 48px 32px 72px; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 6px; }
h2 { font-size: 18px; letter-spacing: -0.01em; margin: 52px 0 4px; padding-top: 18px; border-top: 1px solid var(--rule); }
h3 { font-size: 14px; margin: 22px 0 6px; }
p { margin: 4px 0 14px; max-width: 76ch; }
.lead, .note, figcaption { color: var(--muted); }
.note, figcaption { font-size: 13.5px; }
img { display: block; width: 100%; height: auto; }
figure { margin: 14px 0 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin: 26px 0 0; }
.tile { background: var(--soft); border-radius: 8px; padding: 14px 16px 12px; }
.tile b { display: block; font-size: 25px; line-height: 1.2; font-weight: 600; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tile b.long { font-size: 17px; line-height: 30px; letter-spacing: 0; }
.tile span { display: block; font-size: 13px; font-weight: 600; margin-top: 4px; }
.tile small { display: block; font-size: 12.5px; line-height: 1.4; color: var(--muted); margin-top: 2px; }
.line { display: flex; align-items: stretch; margin: 16px 0 0; padding: 0; list-style: none; }
.line li { flex: 1 1 0; position: relative; background: var(--soft); border-radius: 8px; padding: 11px 10px; margin-right: 20px; }
.line li:last-child { margin-right: 0; }
.line li:not(:last-child)::after { content: "\\2192"; position: absolute; right: -19px; top: calc(50% - 13px); width: 18px;
  text-align: center; color: var(--muted); }
.line li.trained { background: #e6eff6; }
.line b { display: block; font-size: 14px; }
.line span { display: block; font-size: 12px; line-height: 1.35; color: var(--muted); }
.frames { display: grid; grid-template-columns: 74px 1fr; gap: 6px 10px; align-items: center; }
.frames small { font-size: 13px; color: var(--muted); }
.frames span { font-size: 13px; color: var(--muted); text-align: right; }
table { border-collapse: collapse; margin: 14px 0 0; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 26px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--muted); font-weight: 500; font-size: 13px; }
td.wide { overflow-wrap: anywhere; }
.empty { color: var(--muted); background: var(--soft); border-radius: 8px; padding: 12px 16px; max-width: none; }
ul.caveats { margin: 10px 0 0; padding-left: 20px; max-width: 76ch; }
@media (max-width: 820px) { .line { flex-direction: column; gap: 20px; } .line li { margin: 0; }
  .line li:not(:last-child)::after { content: "\\2193"; right: auto; left: 16px; top: auto; bottom: -22px; } }
"""


def _image(png: bytes, alt: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(alt)}">'


def _figure(png: bytes, alt: str, caption: str = "") -> str:
    return f"<figure>{_image(png, alt)}" + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "") + "</figure>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>" if any(header) else ""
    body = "".join(f"<tr>{''.join(f'<td class=wide>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def _section(title: str, note: str, body: str, empty: str) -> str:
    body = body or f'<p class="empty">{escape(empty)}</p>'
    return f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{body}</section>'


def _solved(tasks: Mapping[str, Any], agent: str) -> str:
    won = sum(task[f"success{agent}"] * task[f"episodes{agent}"] for task in tasks.values())
    return f"{won:.0f} of {sum(task[f'episodes{agent}'] for task in tasks.values())}"


def headline(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The figures a reader wants first, from what `gwp demo` writes as `summary.json`: (label, value, one line about it)."""
    tiles: list[tuple[str, str, str]] = []
    if tasks := summary.get("closed_loop"):
        remark = f"{len(tasks)} tasks; acting at random: {_solved(tasks, '_random')}"
        tiles.append(("episodes solved in closed loop", _solved(tasks, ""), remark))
    if error := summary.get("open_loop"):
        tiles.append(("action error on held-out episodes", f"{error['mse']:.3g}",
                      f"mean square; holding still {error['mse_hold']:.3g}, the mean action {error['mse_mean']:.3g}"))
    if latency := summary.get("latency"):
        tiles.append(("to act, median", f"{latency['act_ms_p50']:.1f} ms",
                      f"joint with the future: {latency['joint_ms_p50']:.1f} ms, {latency['ratio']:.2f} times as long"))
    if fleet := summary.get("fleet"):
        remark = (f"{fleet['robots']} robots; p50 {fleet['p50_ms']:.0f} ms, p99 {fleet['p99_ms']:.0f} ms; "
                  f"{fleet['replicas_min']} to {fleet['replicas_max']} replicas")
        tiles.append(("requests of the fleet failed", f"{fleet['failed']} of {fleet['requests']}", remark))
    if resume := summary.get("resume"):
        tiles.append(("a worker was killed", f"step {resume['killed_at_step']}", f"and resumed from step {resume['resumed_from_step']}"))
    if stages := summary.get("stages"):
        tiles.append(("training steps", str(sum(stage["steps"] for stage in stages.values())),
                      f"{len(stages)} stages, {sum(stage['seconds'] for stage in stages.values()):.0f} s"))
    if policy := summary.get("policy"):
        tiles.append(("policy served", f"version {policy['version']}", f"{policy['family']}, {policy['alias']}, id {policy['id'][:12]}"))
    if "seconds" in summary:
        tiles.append(("for the whole line", f"{summary['seconds'] / 60:.1f} min", "quick variant" if summary.get("quick") else ""))
    return tiles


def _missing(media: ReportData) -> str:
    parts = []
    for title, lines in (("Did not happen", media.shortfalls), ("Cut, to keep the time on this machine", media.cut)):
        if lines:
            parts.append(f'<h3>{title}</h3><ul class="caveats">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>')
    return f'<section class="missing">{"".join(parts)}</section>' if parts else ""


def _tiles(summary: Mapping[str, Any]) -> str:
    parts = []
    for label, value, remark in headline(summary):
        size = ' class="long"' if len(value) > _LONG_VALUE else ""
        parts.append(f'<div class="tile"><b{size}>{escape(value)}</b><span>{escape(label)}</span><small>{escape(remark)}</small></div>')
    return f'<div class="tiles">{"".join(parts)}</div>' if parts else '<p class="empty">This run left no headline numbers.</p>'


def _diagram(trained: Mapping[str, Any]) -> str:
    items = (f'<li{" class=trained" if name in trained else ""}><b>{name}</b><span>{text}</span></li>' for name, text in _LINE)
    return f'<ol class="line">{"".join(items)}</ol>'


def psnr(real: np.ndarray, imagined: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 frames, dB; the mean over frames of the same shape."""
    error = np.square(real.astype(np.float64) - imagined.astype(np.float64)).mean(axis=tuple(range(1, real.ndim)))
    return float((10 * np.log10(255.0**2 / np.maximum(error, 1e-10))).mean())


def _imagined(clips: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> str:
    parts = []
    for title, real, dreamt in clips:
        quality = ""
        if len(real) > 1 and real.shape == dreamt.shape:
            still = np.broadcast_to(real[:1], real[1:].shape)
            quality = (f"PSNR of the future frames {psnr(real[1:], dreamt[1:]):.1f} dB; "
                       f"repeating the first frame would give {psnr(real[1:], still):.1f} dB.")
        strips = (f"<span>{name}</span>{_image(charts.strip(frames), f'{title}: {name} frames')}"
                  for name, frames in (("real", real), ("imagined", dreamt)))
        parts.append(f'<h3>{escape(title)}</h3><div class="frames">{"".join(strips)}<span></span><small>{quality}</small></div>')
    return "".join(parts)


def _rate(successes: int, episodes: int) -> str:
    low, high = wilson(successes, episodes)
    return f"{successes} of {episodes} ({100 * low:.0f} to {100 * high:.0f} %)"


def _closed_loop(results: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    if not results:
        return ""
    agents = list(dict.fromkeys(agent for by_agent in results.values() for agent in by_agent))
    rows = [[task, *(_rate(*by_agent[agent]) if agent in by_agent else "not run" for agent in agents)]
            for task, by_agent in results.items()]
    return _figure(charts.closed_loop(results), "success rate per task and agent") + _table(["task", *agents], rows)


def _percentiles(milliseconds: Sequence[float]) -> list[str]:
    return [f"{np.percentile(milliseconds, q):.1f}" for q in (50, 95, 99)]


def _latency(latency: Mapping[str, Sequence[float]]) -> str:
    names = {"act_ms": "act: actions only", "joint_ms": "joint: actions and future"}
    samples = {names.get(key, key): values for key, values in latency.items() if len(values)}
    if not samples:
        return ""
    rows = [[name, str(len(values)), *_percentiles(values)] for name, values in samples.items()]
    ratio = ""
    if latency.get("act_ms") and latency.get("joint_ms"):
        times = float(np.median(latency["joint_ms"]) / np.median(latency["act_ms"]))
        ratio = f"The joint mode takes {times:.2f} times as long as acting (medians, measured in this run)."
    return _figure(charts.latency(samples), "latency of act and joint", ratio) + _table(
        ["", "chunks", "p50 ms", "p95 ms", "p99 ms"], rows)


def _speed(steps: Sequence[Mapping[str, Any]], seams: Mapping[str, Any]) -> str:
    parts = []
    if steps:
        rows = [[str(r["steps"]), f"{r['ms']:.1f}", f"{r['mse']:.4f}", f"{r['rms']:.3f}"] for r in steps]
        parts.append(_table(["solver steps", "ms", "error against recorded actions", f"apart from {steps[0]['steps']} steps"], rows))
    if seams:
        names = {"inside": "inside a chunk", "chunked": "real-time chunking", "naive": "naive switching"}
        rows = [[text, *(f"{seams[name][k]:.3f}" for k in ("position", "position_p95", "velocity", "velocity_p95"))]
                for name, text in names.items()]
        parts.append(_table([f"{seams['seams']} seams, {seams['delay']} steps late", "position", "p95", "velocity", "p95"], rows))
    return "".join(parts)


def _fleet(replicas: Sequence[tuple[float, int, int]], latencies: Sequence[tuple[float, float]]) -> str:
    if not (replicas or latencies):
        return ""
    rows = []
    if replicas:
        counts = [running for _, running, _ in replicas]
        rows.append(["replicas", f"{counts[0]} at the start, at most {max(counts)}, {counts[-1]} at the end"])
    if latencies:
        p50, p95, p99 = _percentiles([ms for _, ms in latencies])
        rows.append(["requests", f"{len(latencies)} answered: p50 {p50} ms, p95 {p95} ms, p99 {p99} ms"])
    return _figure(charts.fleet(replicas, latencies), "replicas and latency over time") + _table(["", ""], rows)


def write_report(
    folder: Path, summary: Mapping[str, Any], media: ReportData, title: str = "GigaWorld-Policy: the whole line"
) -> Path:
    """Write `folder/report.html` and return its path.

    `summary`: what `headline` reads; any part of it may be absent.
    """
    trained = {stage: points for stage, points in media.losses.items() if points}
    losses = _figure(charts.losses(trained, media.resumed), "loss curves of the stages") if trained else ""
    actions = _figure(charts.actions(*media.actions), "recorded and predicted actions") if media.actions else ""
    environment = _table(["", ""], list(media.environment.items())) if media.environment else ""
    caveats = f'<ul class="caveats">{"".join(f"<li>{escape(text)}</li>" for text in media.caveats)}</ul>' if media.caveats else ""
    sections = [
        _section("The line", "From videos to robots. Shaded: trained in this run.", _diagram(trained), ""),
        _section("Losses of the stages", "Thin: every logged step. Bold: smoothed. Dashed: a worker was killed, the run goes on.",
                 losses, "No losses were recorded."),
        _section("Imagined and real futures", "What the model expects to see, beside what the cameras saw.",
                 _imagined(media.imagined), "No futures were imagined."),
        _section("Predicted and recorded actions", "On held-out episodes, in robot units.", actions, "No actions were compared."),
        _section("Closed loop", "The served policy acts in simulation. Blind replays an expert from another start: what needs no camera.",
                 _closed_loop(media.closed_loop), "No closed-loop episodes were run."),
        _section("Latency of a chunk", "Acting leaves the future out; the joint mode generates it as well.",
                 _latency(media.latency), "Latency was not measured."),
        _section("What speed costs", "Fewer solver steps; and the jump where a late chunk takes over, in deviations of each action.",
                 _speed(media.steps, media.seams), "Neither was studied."),
        _section("The fleet", "Robots ask the endpoint; replicas come and go with the load.",
                 _fleet(media.replicas, media.fleet), "The endpoint was not put under load."),
        _section("Environment", "What this ran on and with.", environment, "The environment was not recorded."),
        _section("Caveats", "What these numbers do not say.", caveats, "None were stated."),
    ]
    page = (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
            f'<p class="lead">Train complex, infer simple: the future video teaches, and is left out when the robot acts.</p>'
            f"{_missing(media)}<section>{_tiles(summary)}</section>{''.join(sections)}</main></body></html>")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path

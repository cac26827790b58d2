"""The page of `gwp data inspect --html`: what a set looks like, and what the model will see of it."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from gwp import storage
from gwp.data.canvas import SLOTS, Canvas
from gwp.data.embodiment import Slot
from gwp.data.manifest import build_manifest
from gwp.data.robot_set import Episode, RobotSet
from gwp.data.robots import robots_at, usable_episodes
from gwp.data.sample import SampleSpec, decode_samples
from gwp.data.source import Source
from gwp.data.vectors import episode_vectors
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from pipelines.report_charts import BLUE, CLAY, GRID, MUTED

_CLIP = ClipWindow(frames=5, fps=5)
_CHUNKS = (16, 8, 4)
"""Lengths of the window that is shown; the longest that fits."""
_SIZES = {"t": (320, 384), "horizontal": (480, 240), "single": (320, 240)}
_CURVES, _VIDEOS = 24, 40
"""Dimensions and videos shown at most."""

_STYLE = """
body { margin: 0; color: #22303c; font: 15px/1.5 Inter, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 60px; }
h1 { font-size: 22px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 17px; margin: 36px 0 8px; }
p { color: #6b7885; margin: 2px 0 12px; } img { display: block; max-width: 100%; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; } td, th { text-align: left; padding: 5px 12px 5px 0;
  border-bottom: 1px solid #e1e6ea; vertical-align: top; overflow-wrap: anywhere; } th { color: #6b7885; font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: 14px; }
figure { margin: 0 0 12px; } figcaption { font-size: 13px; color: #6b7885; margin-top: 3px; }
.fatal, .left { color: #b3412b; font-weight: 600; }
"""


def write_page(place: str, source: Source, found: dict[str, Any], layout: str | None) -> None:
    """Write one HTML file that needs nothing beside it."""
    data = robots_at(source)
    parts = [f"<h1>{escape(source.uri)}</h1>", _summary(found), _findings(found["findings"])]
    if found["usable"]:
        parts += _clips(source) if data is None else _robots(source, data, layout)
    if found.get("dimensions"):
        told = ("off_state: mean distance of an action from the state of the same number, as a share of its range; small where the two "
                "are one quantity, as deltas need it.")
        columns = ("of", "name", "min", "max", "mean", "off_state", "note")
        parts += [f"<h2>Dimensions</h2><p>{told}</p>", _table(found["dimensions"], columns)]
    page = f"<!doctype html><meta charset=utf-8><title>{escape(source.uri)}</title><style>{_STYLE}</style><main>{''.join(parts)}</main>"
    storage.write_bytes(place, page.encode())


def _summary(found: dict[str, Any]) -> str:
    noun = "episodes" if "robot" in found else "videos"
    facts = [found["format"], f"{found['usable']} of {found['episodes']} {noun} usable", f"{found['frames']} frames",
             f"{found['hours']:.3g} hours"]
    if "robot" in found:
        facts += [f"robot {found['robot']}", f"{found['fps']:g} Hz", f"state {len(found['state'])}, action {len(found['action'])} wide"]
        several = f"{len(found['tasks'])} tasks, e.g." if len(found["tasks"]) > 1 else "task"
        facts += [f"{several} {next(iter(found['tasks'])) or '(none)'}"]
    return f"<p>{escape(' · '.join(facts))}</p>"


def _findings(findings: list[dict[str, str]]) -> str:
    if not findings:
        return "<h2>Findings</h2><p>Nothing wrong was found.</p>"
    rows = "".join(
        f"<tr><td class={f['consequence'].split()[0]}>{escape(f['consequence'])}<td>{escape(f['item'])}<td>{escape(f['what'])}"
        f"<td>{escape(f['advice'])}" for f in findings[:200]
    )
    more = f"<p>... and {len(findings) - 200} more</p>" if len(findings) > 200 else ""
    return f"<h2>Findings</h2><table><tr><th>What follows<th>Where<th>What<th>Advice{rows}</table>{more}"


def _table(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else escape(str(value))

    body = "".join("<tr>" + "".join(f"<td>{cell(row.get(k, ''))}" for k in keys) for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(k)}' for k in keys)}{body}</table>"


def _robots(source: Source, data: RobotSet, layout: str | None) -> list[str]:
    labelled = bool(data.state_names and data.action_names)
    good, _ = usable_episodes(data, source.model_copy(update={"embodiment": "any" if labelled else None}), list(data.cameras))
    episode, first = max(good, key=lambda g: g[0].length)
    parts = _pictures(source, data, episode, layout)
    if labelled:
        state, action = episode_vectors(data, episode, first)
        parts.append(f"<h2>Actions and state of episode {episode.index}</h2><p>Over seconds, in robot units.</p>")
        parts.append(_curves(data, state, action))
    return parts


def _pictures(source: Source, data: RobotSet, episode: Episode, layout: str | None) -> list[str]:
    """The middle of the longest episode by camera, and as the model sees it."""
    chunk = next((c for c in _CHUNKS if c < episode.length), None)
    if chunk is None or not data.cameras:
        why = "no camera" if chunk else f"the longest episode has {episode.length} rows, too few for 5 frames"
        return [f"<h2>Cameras</h2><p>Nothing to show: {why}.</p>"]
    window = Window(chunk=chunk, stride=chunk // 4)
    cameras: dict[Slot, str] = dict(zip(SLOTS, data.cameras, strict=False))
    parts = [f"<h2>Cameras</h2><p>The middle of episode {episode.index}.</p><div class=row>"]
    for camera in data.cameras:
        picture = _frames(source, episode, {"front": camera}, Canvas(layout="single", width=320, height=240), window)
        parts.append(_figure(picture[0], camera))
    layout = layout or ("t" if len(cameras) == 3 else "horizontal" if len(cameras) == 2 else "single")
    width, height = _SIZES[layout]
    canvas = Canvas(layout=layout, width=width, height=height, missing="grey")  # type: ignore[arg-type]
    shown = {"front": cameras["front"]} if layout == "single" else cameras
    frames = _frames(source, episode, shown, canvas, window)
    views = escape(", ".join(f"{s} = {c}" for s, c in shown.items()))
    every = "every step" if window.stride == 1 else f"every {window.stride}th step"
    parts += ["</div><h2>What the model sees</h2>", f"<p>Canvas '{layout}', {width}x{height}: {views}; {every} of one window.</p>",
              _figure(np.concatenate(list(frames), axis=1), "")]
    return parts


def _frames(source: Source, episode: Episode, cameras: dict[Slot, str], canvas: Canvas, window: Window) -> np.ndarray:
    """uint8 `[T, H, W, 3]` of the window in the middle of an episode."""
    video = source.model_copy(update={"embodiment": None, "cameras": cameras, "episodes": str(episode.index)})
    found = build_manifest([video], embodiments={}, window=window, clip=_CLIP)
    samples, failed = decode_samples(found.rows([len(found) // 2]), SampleSpec(canvas, window, _CLIP, {}, {}, 1, False, 0))
    if failed:
        raise DataError(failed[0][1])
    frames: np.ndarray = samples[0]["frames"]
    return frames


def _clips(source: Source) -> list[str]:
    parts = ["<h2>Clips</h2><p>The first clip of each video as the model sees it, 5 frames at 5 Hz.</p>"]
    try:
        found = build_manifest([source], embodiments={}, window=Window(chunk=4, stride=1), clip=_CLIP)
    except DataError as error:
        return [*parts, f"<p>{escape(str(error))}</p>"]
    seen: dict[str, int] = {}
    for i, name in enumerate(found.samples["sample_id"].to_pylist()):
        seen.setdefault(name.rsplit("/", 1)[0], i)
    spec = SampleSpec(Canvas(layout="single", width=208, height=160), Window(chunk=4, stride=1), _CLIP, {}, {}, 1, False, 0)
    texts = found.texts()
    for row in found.rows(list(seen.values())[:_VIDEOS]):
        samples, failed = decode_samples([row], spec)
        caption = f"{row['sample_id'].split('/', 1)[1].rsplit('/', 1)[0]}: {texts[row['text_key']] or 'no caption'}"
        parts.append(_figure(np.concatenate(list(samples[0]["frames"]), axis=1), caption) if samples else f"<p>{escape(failed[0][1])}</p>")
    return parts


def _figure(picture: np.ndarray, caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><img alt='{escape(caption)}' src='{_inline(buffer)}'>{text}</figure>"


def _inline(png: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def _curves(data: RobotSet, state: np.ndarray, action: np.ndarray) -> str:
    """Every action over time, and beside it the state of the same number, which deltas are taken from."""
    count = min(_CURVES, action.shape[1])
    columns = 4 if count > 6 else min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(10.5, 1.5 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    seconds = np.arange(len(action)) / data.fps
    for i, plot in enumerate(axes):
        if i >= count:
            plot.set_visible(False)
            continue
        if i < state.shape[1]:
            plot.plot(seconds, state[:, i], color=CLAY, linewidth=1, label="state")
        plot.plot(seconds, action[:, i], color=BLUE, linewidth=1, label="action")
        plot.set_title(data.action_names[i], fontsize=8, loc="left")
        plot.tick_params(labelsize=7, colors=MUTED)
        plot.grid(color=GRID, linewidth=0.6)
        plot.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, facecolor="white")
    more = f"<p>The first {count} of {action.shape[1]} actions.</p>" if count < action.shape[1] else ""
    return f"<img alt='curves' src='{_inline(buffer)}'>{more}"

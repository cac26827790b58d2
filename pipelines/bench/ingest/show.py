"""The figures of `gwp bench ingest` for a terminal."""

from typing import Any


def table(r: dict[str, Any]) -> str:
    """Everything that was measured, with what it was measured on."""
    versions = ", ".join(f"{name} {version}" for name, version in r["versions"].items())
    width, height = r["canvas"]
    window = r["window"]
    clip = r["clip"]
    cut = (
        f"chunk {window['chunk']} stride {window['stride']}, clips of {clip['frames']} "
        f"frames at {clip['fps']:g} Hz"
    )
    return "\n".join(
        [
            (
                f"{r['hardware']}; {r['cores']} decoding processes, {r['workers']} training "
                f"workers; {versions}"
            ),
            f"  canvas {width}x{height}, {cut}, {r['batch']} samples a micro-batch",
            (
                f"  {r['samples']} samples per side, {r['warm_up']} before and behind them; "
                f"cached: {r['cached']}"
            ),
            *(line for one in r["sets"] for line in _set(one)),
        ]
    )


def _set(one: dict[str, Any]) -> list[str]:
    videos = one["videos"]
    kind = f"{videos['files']} videos, {'/'.join(videos['codec'])}, {'/'.join(videos['size'])}"
    keys = f"key frames at most {'/'.join(map(str, videos['gop']))} apart"
    lines = [
        f"{one['set']}: {kind}, {keys}; {one['frames_per_sample']:.2f} different frames a sample"
    ]
    lines += [f"  {name:25}{_side(figures)}" for name, figures in one["sides"].items()]
    lines.append(f"  read_videos: {one['read_videos']}")
    for origin, ratios in one["ratios"].items():
        shown = ", ".join(f"{name} {value:.2f}" for name, value in ratios.items())
        lines.append(f"  ratios from {origin}: {shown}")
    return lines


def _side(f: dict[str, Any]) -> str:
    per_core = (
        f"{f['samples_per_s_per_core']:7.1f} samples/s {f['frames_per_s_per_core']:8.1f} frames/s"
    )
    parts = [f"{f['samples_per_s']:8.1f} samples/s, per core {per_core}"]
    # From here on what only some sides tell: bare loops know nothing of memory.
    if "decoded_per_used" in f:
        parts.append(f"{f['decoded_per_used']:.2f} decoded per used frame")
    if "opens_per_thousand" in f:
        parts.append(f"{f['opens_per_thousand']:.0f} opens per 1000 samples")
    if "s3_bytes_per_frame" in f:
        parts.append(
            f"{f['s3_bytes_per_frame'] / 1e3:.1f} kB and "
            f"{f['s3_requests_per_thousand_frames'] / 1e3:.2f} requests a frame"
        )
    if "peak_mb" in f:
        parts.append(f"peak {f['peak_mb']:.0f} MiB")
    if "store" in f:
        parts.append(
            f"store {f['store']['used_mb']:.0f} MiB, spilled {f['store']['spilled_mb']:.0f}"
        )
    return ", ".join(parts)


def soak_table(r: dict[str, Any]) -> str:
    """Memory by tenth of the run."""
    rows = [_memory(tenth) for tenth in r["mb_by_tenth"]]
    return "\n".join(
        [
            (
                f"{r['samples']} samples in {r['seconds']:.1f} s ({r['samples_per_s']:.0f}/s); MiB "
                "without shared pages, median of each tenth:"
            ),
            *(f"  {i + 1:3} {row}" for i, row in enumerate(rows)),
            (
                f"  object store: {r['store']['used_mb']:.1f} MiB at the end, "
                f"{r['store']['spilled_mb']:.1f} MiB spilled"
            ),
        ]
    )


def _memory(mb_by_kind: dict[str, float]) -> str:
    return ", ".join(f"{kind} {mb:7.1f}" for kind, mb in mb_by_kind.items())

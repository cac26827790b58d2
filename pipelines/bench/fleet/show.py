"""The figures of `gwp bench fleet` for a terminal."""

from typing import Any


def table(r: dict[str, Any]) -> str:
    """Everything that was measured, with what it was measured on."""
    asked = f"{r['rate_hz']:g} Hz each" if r["rate_hz"] else "as soon as they are answered"
    lines = [
        (
            f"{r['size']} {r['visibility']} policy, {r['replicas']} replicas, {r['slots']} slots; "
            f"robots ask {asked}"
        ),
        (
            f"  {r['hardware']}, {r['threads']} threads each, torch {r['torch']}; pictures "
            f"{'x'.join(map(str, r['picture']))}"
        ),
        f"  the engine alone, one robot: p50 {r['bare_ms_p50']:.1f} ms",
        (
            f"  {'':16} {'robots':>6} {'per s':>7} {'p50':>7} {'p95':>7} {'p99':>7} ms "
            f"{'age':>7} {'batch':>6} {'failed':>6} {'missed':>6} {'silence':>8}"
        ),
    ]
    for ways in r["by_robots"].values():
        lines += [_row(way, row) for way, row in ways.items()]
    for way, found in r["by_gateway"].items():
        ratios = found["vs_one_at_a_time"].items()
        told = ", ".join(f"{robots}: {ratio:.2f}" for robots, ratio in ratios)
        lines.append(
            f"  {way}: {found['overhead_ms_p50']:.1f} ms over the engine alone; chunks/s against "
            f"one at a time, by robots: {told}"
        )
    return "\n".join(lines)


def _row(way: str, row: dict[str, Any]) -> str:
    ms, age = row["ms"], row["age_ms"]
    batch = f"{row['batch']:.1f}" if "batch" in row else "1"
    told = f"{age['p50']:.0f}" if age else "-"
    return (
        f"  {way:16} {row['robots']:6} {row['per_s']:7.1f} {ms['p50']:7.1f} {ms['p95']:7.1f} "
        f"{ms['p99']:7.1f}    {told:>7} {batch:>6} {row['failed']:6} {row['missed']:6} "
        f"{row['silence_s']:7.2f}s {row['errors'] or ''}{_replicas(row)}"
    )


def _replicas(row: dict[str, Any]) -> str:
    """Where they were not always as many."""
    seen = row.get("replicas", ())
    return " replicas " + ", ".join(f"{n} at {s:g} s" for s, n in seen) if len(seen) > 1 else ""

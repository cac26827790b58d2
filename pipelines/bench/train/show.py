"""The table that `gwp bench train` prints."""

from typing import Any

_WORDS = {
    "bare": "bare loop",
    "masked": "one masked attention",
    "materialised": "scores in memory",
    "compiled": "compiled blocks",
    "products": "its bare products",
}


def table(found: dict[str, Any]) -> str:
    """For a terminal."""
    begin = (
        f"{found['size']} {found['family']}, {found['parameters'] / 1e6:.1f} M parameters, batch "
        f"{found['batch']}, {found['precision']}, {found['device']}, {found['threads']} threads: "
        f"{found['gflop_per_step']:.1f} GFLOP a step, {found['tflop_per_s']:.3f} TFLOP/s bare"
    )
    lines = [begin, f"  {'':22} {'ms a step':>10} {'fastest to slowest':>20}"]
    for name, side in found["sides"].items():
        spread = f"{1e3 * side['fastest_s']:.1f} to {1e3 * side['slowest_s']:.1f}"
        lines.append(f"  {_WORDS.get(name, name):22} {1e3 * side['wall_s']:10.1f} {spread:>20}")
    ratios = found["ratios"]
    lines += [
        _line("step over its products", found["step_vs_products"]),
        _line("segments against a mask", ratios["segment_vs_masked"]),
        _line("... with scores in memory", ratios["segment_vs_materialised"]),
    ]
    if "compiled" in ratios:
        over = found["compiled_vs_products"]
        lines.append(
            f"{_line('compiled against bare', ratios['compiled'])} ({over:.2f}x its products)"
        )
    for stage, ratio in ratios["zero"].items():
        cpu = ratios["zero_cpu_time"][stage]
        lines.append(f"{_line(f'ZeRO {stage} against bare', ratio)} (of CPU time {cpu:.2f})")
    if "whole" in found:
        whole = found["whole"]
        parts = ", ".join(f"{k} {1e3 * v:.1f}" for k, v in whole["phases"].items() if v > 5e-5)
        name, step_ms = f"whole stack, ZeRO {whole['zero_stage']}", 1e3 * whole["step_s"]
        waits, saves = found["data_wait_share"], found["checkpoint_share"]
        lines += [
            f"  {name:22} {step_ms:10.1f} ms a step: {parts}",
            _line("whole stack against bare", ratios["vs_bare_loop"]),
            f"  waiting for data {waits:.1%}, at checkpoints {saves:.1%}",
        ]
    return "\n".join(lines)


def _line(name: str, ratio: float) -> str:
    return f"  {name + ':':26} {ratio:6.2f}x"

"""`make sanitize` would see a fault: a deliberately wrong call of each library ends in a report that names its file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gwp.native import build

PICTURES = """
import ctypes, sys
import numpy as np
from gwp import scale
from gwp.native.build import library

fault = sys.argv[1]
rows = 23 if fault == "a row too little" else 24
out = np.empty((rows, 32, 3), np.uint8)
if fault == "an odd address":
    taps = scale._side(64, 32, 0, 32).taps
    held = np.zeros(4 * taps.count + 1, np.uint8)
    taps.first = ctypes.cast(held.ctypes.data + 1, ctypes.POINTER(ctypes.c_int32))
picture = np.zeros((48, 64, 3), np.uint8)
scale._by_compiled(library("pictures"), picture, (32, 24), (0, 0, 32, 24), out)
print("whole")
"""
PASSES = """
import ctypes, sys
import torch
from gwp.native.build import library
from tests.unit.test_native import SHAPES, chunks, model_of

solver, _ = chunks(model_of(SHAPES[1], "gwp05"), SHAPES[1])
with torch.inference_mode():
    prefix = solver.empty(3, 8, solver.model.config.experts)
    through = solver.acting(prefix)
    plan = through.layers.args[0].plan
    size = library("passes").gwp_workspace_size(ctypes.byref(plan))
    workspace = torch.zeros(size // 2 if sys.argv[1] == "half the workspace" else size)
    plan.workspace = workspace.data_ptr()
    solver.velocity(through, torch.zeros(3, 17, 5), solver.level(0))
print("whole")
"""

pytestmark = pytest.mark.skipif(
    "-fsanitize" not in os.environ.get(build.FLAGS, ""), reason="run by `make sanitize`"
)


def run(program, fault):
    return subprocess.run(
        [sys.executable, "-c", program, fault], cwd=Path(__file__).resolve().parents[2],
        capture_output=True, text=True, timeout=200, check=False,
    )


@pytest.mark.parametrize(("program", "fault", "said", "file"), [
    (PICTURES, "a row too little", "heap-buffer-overflow", "pictures.cpp"),
    (PICTURES, "an odd address", "misaligned address", "pictures.cpp"),
    (PASSES, "half the workspace", "AddressSanitizer: heap-", "passes.cpp"),
])
def test_a_planted_fault_is_reported(program, fault, said, file):
    sound = run(program, "none")
    assert (sound.returncode, sound.stdout) == (0, "whole\n"), sound.stderr
    faulty = run(program, fault)
    assert faulty.returncode != 0
    assert said in faulty.stderr
    assert file in faulty.stderr

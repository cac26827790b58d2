"""`make sanitize` would see a fault: one planted into the C++ of each library is reported, with
its file.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gwp.native import build

PROGRAM = """
import shutil, sys, tempfile
from pathlib import Path
import numpy as np
from gwp.native import build
from gwp.scale import scale_part
from tests.unit.gwp.model.inference.test_compiled import SHAPES, chunks, model_of

file, sound, faulty = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    # The libraries of a copy of the code, with the fault.
    copy = Path(folder) / "native"
    shutil.copytree(Path(build.__file__).parent, copy)
    text = (copy / file).read_text()
    assert text.count(sound) == 1
    (copy / file).write_text(text.replace(sound, faulty))
    build.__file__ = str(copy / "build.py")
    assert build.library(Path(file).stem)
    if file == "passes.cpp":
        chunks(model_of(SHAPES[1], "gwp05"), SHAPES[1])
    else:
        out = np.empty((40, 30, 3), np.uint8)
        scale_part(np.zeros((80, 60, 3), np.uint8), (30, 40), (0, 0, 30, 40), out)
print("whole")
"""
WORKSPACE = "floats += lanes * ("
ROW = "if (x + WIDE <= width) {"
ROUNDING = "floats sum = (float)(1 << (bits - 1)) - floats{};"

pytestmark = pytest.mark.skipif(
    "-fsanitize" not in os.environ.get(build.FLAGS, ""), reason="run by `make sanitize`"
)


@pytest.mark.parametrize(
    ("file", "sound", "faulty", "report"),
    [
        ("passes.cpp", WORKSPACE, WORKSPACE, None),
        ("pictures.cpp", ROW, ROW, None),
        # A little less memory than a pass needs (with much less it may touch pages that nobody owns,
        # where the process ends without a report); what is behind the end of a row; undefined arithmetic.
        ("passes.cpp", WORKSPACE, "floats += lanes * 15 / 16 * (", "AddressSanitizer"),
        ("pictures.cpp", ROW, "if (x <= width) {", "AddressSanitizer"),
        ("pictures.cpp", ROUNDING, ROUNDING.replace("- 1", "+ 40"), "shift exponent"),
    ],
)
def test_a_planted_fault_is_reported(file, sound, faulty, report):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, file, sound, faulty],
        cwd=Path(__file__).resolve().parents[4],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if report is None:
        assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr
    else:
        assert done.returncode != 0
        assert report in done.stderr
        assert file in done.stderr

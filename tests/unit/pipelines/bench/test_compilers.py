"""`gwp bench compilers`: what compilers get is the model, every engine is compared before it is
timed, and one that cannot run says why.
"""

import pytest
import torch

from gwp.errors import GwpError
from pipelines.bench.compilers import engines as compiler_engines
from pipelines.bench.compilers.bench import CASES, TOLERANCE, bench_compilers, markdown
from pipelines.bench.compilers.engines import ENGINES, Problem


@pytest.mark.parametrize("family", ["gwp0", "gwp05"])
def test_plain_passes_give_the_numbers_of_the_solver(family, tmp_path):
    problem = Problem.draw("tiny", family)
    plain = compiler_engines._plain_cases(problem, lambda module, _: module)
    ours = ENGINES["eager"](problem, 1, tmp_path)
    assert tuple(plain) == tuple(ours) == CASES
    for x, y in (
        (plain["act"](), ours["act"]()),
        (plain["step"](), ours["step"]()),
        *zip(plain["joint"](), ours["joint"](), strict=True),
    ):
        assert x.shape == y.shape
        torch.testing.assert_close(x, y, atol=TOLERANCE, rtol=0)
    # A step moves: equal outputs are not equal inputs.
    assert not torch.equal(ours["step"](), problem.tokens.action)


@pytest.mark.slow
@pytest.mark.slow
def test_an_engine_that_cannot_run_has_a_row_that_says_why(monkeypatch, tmp_path):
    (tmp_path / "openvino.py").write_text("raise ModuleNotFoundError(name='openvino')")
    monkeypatch.syspath_prepend(tmp_path)
    engines = ["eager", "ours", "openvino"]
    result = bench_compilers("tiny", "gwp05", engines, 2, 1, tmp_path)
    assert result["engines"]["openvino"] == {
        "problem": "openvino is not installed (pip install openvino)"
    }
    assert result["engines"]["eager"]["ratio"]["act"]["median"] == 1
    assert result["engines"]["ours"]["difference"] <= TOLERANCE
    lines = markdown(result).splitlines()
    assert sum(line.startswith("| ours |") for line in lines) == 1
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    with pytest.raises(GwpError, match="openvino is not installed"):
        bench_compilers("tiny", "gwp05", ["openvino"], 1, 1, tmp_path)

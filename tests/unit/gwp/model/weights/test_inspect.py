"""`gwp weights inspect`: what it says of whole, broken and mistaken checkpoints, and what it
returns.
"""

import json

import pytest
import torch

from gwp.model.weights import open_checkpoint
from gwp.model.weights.compare import similarity
from pipelines.cli import main
from tests.support import forms
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def dense():
    return tiny_model("gwp0", num_layers=3, num_embodiments=1)


@pytest.fixture
def folder(dense, tmp_path):
    return forms.write(tmp_path / "dense", forms.published(dense), dense.config.to_published())


def inspected(capsys, *words):
    code = main(["weights", "inspect", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_whole_checkpoint_passes(folder, dense, capsys):
    code, report = inspected(capsys, folder)
    assert code == 0
    assert (report["form"], report["problems"], report["dtypes"]) == (
        "GWP-0 (July)",
        [],
        ["float32"],
    )
    assert report["tensors"] == len(list(dense.parameters()))
    assert report["parameters"] == sum(p.numel() for p in dense.parameters())
    assert report["widths"]["action_channels"] == 6
    assert main(["weights", "inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert (
        f"GWP-0 (July): {report['tensors']} tensors, {report['parameters']:,} parameters, float32"
        in shown
    )
    assert shown.splitlines()[-1] == "whole"


def test_what_does_not_fit_is_listed_and_fails(dense, tmp_path, capsys):
    tensors = forms.published(dense)
    tensors["stray"] = tensors.pop("proj_out.bias")
    folder = forms.write(tmp_path, tensors, dense.config.to_published() | {"ffn_dim": 1})
    code, report = inspected(capsys, folder)
    assert code == 1
    assert report["problems"] == [
        "ffn_dim: config.json says 1, the weights 64",
        "unexpected stray (16,)",
        "missing proj_out.bias (16,)",
    ]
    assert main(["weights", "inspect", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert all(line in shown for line in [*report["problems"], "3 problems: it would be refused"])
    allowed = ("--allow-missing", "proj_*", "--allow-unexpected", "stray")
    assert inspected(capsys, folder, *allowed)[1]["problems"] == report["problems"][:1]


def test_what_is_no_checkpoint_is_one_line(tmp_path, capsys):
    assert main(["weights", "inspect", str(tmp_path)]) == 2
    assert "no weights here" in capsys.readouterr().err


def test_finished_weights_and_pipelines_are_found_by_their_folder(dense, tmp_path, capsys):
    forms.write(tmp_path / "run" / "model", forms.published(dense), dense.config.to_published())
    forms.write(
        tmp_path / "pipeline" / "transformer", forms.wan(dense), forms.wan_config(dense.config)
    )
    assert inspected(capsys, tmp_path / "run")[1]["family"] == "gwp0"
    assert inspected(capsys, tmp_path / "pipeline")[1]["family"] == "wan"


def reference(dense, tmp_path, change=lambda tensors: tensors):
    """A Wan checkpoint from which `dense` may have been trained: a little noise apart."""
    g = torch.Generator().manual_seed(0)
    tensors = {
        n: t + 0.1 * t.std() * torch.randn(t.shape, generator=g) if t.numel() > 1 else t
        for n, t in forms.wan(dense).items()
    }
    return forms.write(tmp_path / "wan", change(tensors), forms.wan_config(dense.config))


def test_a_checkpoint_is_like_what_it_was_trained_from(folder, dense, tmp_path, capsys):
    code, report = inspected(capsys, folder, "--reference", reference(dense, tmp_path))
    assert code == 0
    rows = {row["name"]: row for row in report["similarity"]}
    assert set(rows) == set(forms.wan(dense))
    judged = [row for row in rows.values() if row["matrix"]]
    assert len(judged) == 3 * 10 + 7
    assert min(row["same"] for row in judged) > 0.98
    assert (
        max(
            abs(row["following"])
            for row in judged
            if row["following"] is not None and "ffn" in row["name"]
        )
        < 0.7
    )
    assert {row["verdict"] for row in rows.values()} == {"ok"}
    assert main(["weights", "inspect", str(folder), "--reference", str(tmp_path / "wan")]) == 0
    assert "every matrix is most like its namesake" in capsys.readouterr().out


def test_layers_off_by_one_are_seen(folder, dense, tmp_path, capsys):
    def shifted(tensors):
        """What the checkpoint has as layer i, the reference has as layer i + 1."""
        return {
            n: tensors[f"blocks.{(int(n.split('.')[1]) + 2) % 3}.{n.split('.', 2)[2]}"]
            if n.startswith("blocks.")
            else t
            for n, t in tensors.items()
        }

    code, report = inspected(capsys, folder, "--reference", reference(dense, tmp_path, shifted))
    assert code == 1
    rows = {row["name"]: row for row in report["similarity"]}
    for layer in (0, 1):
        row = rows[f"blocks.{layer}.attn1.to_q.weight"]
        assert row["verdict"] == "next layer"
        assert row["following"] > 0.98 > 0.5 > row["same"]
    assert rows["blocks.2.attn1.to_q.weight"]["verdict"] == "unlike"
    assert rows["proj_out.weight"]["verdict"] == "ok"
    assert report["similarity"][0]["verdict"] != "ok"


def test_transposes_are_seen(folder, dense, tmp_path, capsys):
    name = "blocks.1.attn2.to_v.weight"

    def transposed(tensors):
        return tensors | {name: tensors[name].T.contiguous()}

    code, report = inspected(capsys, folder, "--reference", reference(dense, tmp_path, transposed))
    assert code == 1
    assert [row["name"] for row in report["similarity"] if row["verdict"] != "ok"] == [name]
    assert report["similarity"][0]["verdict"] == "transposed"
    assert main(["weights", "inspect", str(folder), "--reference", str(tmp_path / "wan")]) == 1
    assert "1 of 37 matrices are suspicious" in capsys.readouterr().out


def test_experts_are_compared_with_what_they_were_sliced_from(folder, tmp_path, capsys):
    assert (
        main(
            [
                "weights",
                "convert",
                str(folder),
                "--out",
                str(tmp_path / "mixture"),
                "--to",
                "gwp05",
                "--action-expert-dim",
                "24",
                "--action-ffn-dim",
                "40",
            ]
        )
        == 0
    )
    mixture, dense = open_checkpoint(tmp_path / "mixture"), open_checkpoint(folder)
    rows = similarity(mixture, dense)
    assert {row.name for row in rows} == set(mixture.tensors)
    assert all(row.same == pytest.approx(1, abs=1e-5) for row in rows if row.matrix)
    back = similarity(dense, mixture)
    assert {row.name for row in back if row.reference.startswith("blocks.0.visual_expert.")} == {
        n for n in dense.tensors if n.startswith("blocks.0.")
    }
    capsys.readouterr()

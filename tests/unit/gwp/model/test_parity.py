"""The parity check on folders that the test makes, of other shapes than the published
reference.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from gwp.errors import GwpError
from gwp.model.denoise import act, observe
from gwp.model.flow import solver_sigmas
from gwp.model.parity import check_folder
from gwp.model.transformer import Tokens
from gwp.model.weights import save_weights
from pipelines.cli import main
from tests.support.tiny import tiny_model


def make_folder(folder, family, future, heads, embodiments):
    """A parity folder whose outputs come from one joint pass and one sample of the same
    weights.
    """
    model = tiny_model(family, num_attention_heads=heads, num_embodiments=embodiments)
    g = torch.Generator().manual_seed(5)
    d, n = model.config.action_channels, 6
    x = {
        "ref_latents": torch.randn(2, 4, 1, 6, 4, generator=g),
        "future_latents": torch.randn(2, 4, future, 6, 4, generator=g),
        "state": torch.randn(2, 1, d, generator=g),
        "action": torch.randn(2, 7, d, generator=g),
        "text": torch.randn(2, 3, 16, generator=g),
        "embodiment_id": torch.tensor([0, embodiments - 1]),
        "t_action": torch.tensor([500.0, 37.0]),
        "t_visual": torch.tensor([300.0, 910.0]),
        "sched.sigmas": solver_sigmas(10),
    }
    levels = [
        torch.zeros(2, 1 + n),
        x["t_action"][:, None].expand(2, 7),
        x["t_visual"][:, None].expand(2, n * future),
    ]
    x["timestep"] = torch.cat(levels, dim=1)
    ids = torch.zeros(2, dtype=torch.long) if family == "gwp0" else x["embodiment_id"]
    tokens = Tokens(x["state"], x["ref_latents"], x["action"], x["future_latents"])
    with torch.no_grad():
        out = model(
            tokens,
            {"A": x["t_action"] / 1000, "F": x["t_visual"] / 1000},
            x["text"],
            ids,
            heads=("R", "A", "F"),
        )
        sample = act(model, observe(model, x["state"], x["ref_latents"], x["text"]), x["action"])
    save_weights(folder / family, model.config, dict(model.named_parameters()))
    save_file(x, folder / "inputs.safetensors")
    video = torch.cat([out.reference, out.future], dim=2)
    outputs = {
        "joint.video_pred": video,
        "joint.action_pred": out.action,
        "sample10.action": sample,
    }
    save_file(outputs, folder / family / "outputs.safetensors")


@pytest.mark.parametrize(
    ("family", "future", "heads", "embodiments"), [("gwp0", 2, 3, 1), ("gwp05", 3, 1, 4)]
)
def test_other_shapes_pass(tmp_path, family, future, heads, embodiments, capsys):
    make_folder(tmp_path, family, future, heads, embodiments)
    assert max(check_folder(tmp_path)[family].values()) < 5e-6
    assert main(["weights", "parity", str(tmp_path)]) == 0
    assert "joint.video_pred" in capsys.readouterr().out


def test_a_wrong_output_is_reported(tmp_path):
    make_folder(tmp_path, "gwp05", 1, 2, 2)
    file = tmp_path / "gwp05" / "outputs.safetensors"
    outputs = load_file(file)
    outputs["joint.action_pred"][0, 0, 0] = float("nan")
    save_file(outputs, file)
    assert main(["weights", "parity", str(tmp_path)]) == 1


def test_a_folder_of_another_form_is_refused(tmp_path):
    with pytest.raises(GwpError, match=r"no outputs.safetensors"):
        check_folder(tmp_path)
    assert main(["weights", "parity", str(tmp_path)]) == 2

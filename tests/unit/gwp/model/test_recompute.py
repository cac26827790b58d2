"""Computing blocks again changes no gradient, whatever of them is kept."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gwp.model.recompute import Recompute, again
from tests.support.tiny import tiny_config, tiny_model, tiny_tokens

LAYERS = 4


class Products(TorchDispatchMode):
    """Counts products of matrices and attention, and everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.rest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        product = any(word in name for word in ("mm.", "baddbmm", "dot_product"))
        self.products += product
        self.rest += not product
        return func(*args, **(kwargs or {}))


def gradients(how: Recompute) -> tuple[dict[str, torch.Tensor], Products]:
    model = tiny_model("gwp05", num_layers=LAYERS).train()
    model.gradient_checkpointing = how
    tokens, text, ids = tiny_tokens(config=tiny_config(num_layers=LAYERS))
    level = torch.full((2,), 0.5)
    counted = Products()
    with counted:
        out = model(tokens, {"A": level, "F": level}, text, ids)
        (out.action.square().mean() + out.future.square().mean()).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found, counted


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, torch.Tensor], Products]:
    return gradients(False)


@pytest.mark.parametrize("how", [True, 1, 2, 3, 4, 9, "selective"])
def test_gradients_are_the_same(how: Recompute, plain) -> None:
    found, _ = gradients(how)
    assert found.keys() == plain[0].keys()
    assert all(torch.equal(found[name], plain[0][name]) for name in found)


def test_what_is_computed_twice(plain) -> None:
    base = plain[1].products
    every = gradients(True)[1].products - base
    assert every > 0
    assert gradients(2)[1].products - base == every // 2
    _, selective = gradients("selective")
    # Products are kept, all else of the blocks is not.
    assert selective.products == base
    assert selective.rest > plain[1].rest


def test_so_many_blocks_are_spread_evenly() -> None:
    assert [again(2, i, 6) for i in range(6)] == [False, False, True, False, False, True]
    for count in range(1, 9):
        for how in range(1, 12):
            assert sum(again(how, i, count) for i in range(count)) == min(how, count)
        assert all(again(True, i, count) and again("selective", i, count) for i in range(count))
        assert not any(again(False, i, count) for i in range(count))


def test_without_gradients_nothing_is_computed_again() -> None:
    model: nn.Module = tiny_model("gwp05")
    model.gradient_checkpointing = "selective"  # type: ignore[assignment]
    tokens, text, ids = tiny_tokens()
    with torch.no_grad():
        out = model(tokens, {}, text, ids)
    assert out.action is not None

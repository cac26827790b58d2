"""The gradients that are written by hand are those of the formulas, and keep less."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gwp.model.block import GeluProjection, prefixes
from gwp.model.modulation import by_token, gated_sum, modulated_norm
from gwp.model.norms import Fp32LayerNorm, RMSNorm

B, WIDTH = 3, 16
# A group with one level, one with a level for each of its tokens, and another with one.
RUNS = ((0, 1, 4), (1, 5, 5), (6, 1, 3))
TOKENS, LEVELS = 12, 7
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    # Not around zero and not of length 1, so that means and lengths matter.
    return (values * 2 + 0.5).to(dtype).requires_grad_()


def assert_same(
    ours: Callable[..., Tensor], formula: Callable[..., Tensor], given: list[Tensor]
) -> None:
    """Results and gradients of all that is given."""
    result, wanted = ours(*given), formula(*given)
    assert result.dtype == wanted.dtype
    # What goes in must stay: a function that wrote into it would spoil what others keep.
    before = [x.detach().clone() for x in given]
    # Whatever the dtype, sums are fp32.
    rtol = 2e-2 if result.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(result, wanted, rtol=rtol, atol=1e-5)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(9))
    found = torch.autograd.grad((result.float() * weights).sum(), given)
    expected = torch.autograd.grad((wanted.float() * weights).sum(), given)
    for x, old, one, other in zip(given, before, found, expected, strict=True):
        assert torch.equal(x, old)
        assert one.dtype == x.dtype
        # Autograd sums in bf16 where these sum in fp32.
        rtol, atol = (2e-2, 4e-2) if x.dtype == torch.bfloat16 else (1e-4, 1e-4)
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def plainly(norm: torch.nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if isinstance(norm, RMSNorm):
        return F.rms_norm(x, (WIDTH,), weight, norm.eps)
    return F.layer_norm(x, (WIDTH,), weight, bias, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_modulated_norm(dtype: torch.dtype) -> None:
    def formula(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), (WIDTH,), eps=1e-6)
        return (normed * (1 + by_token(scale, RUNS)) + by_token(shift, RUNS)).to(x.dtype)

    given = [
        draw(B, TOKENS, WIDTH, seed=0, dtype=dtype),
        draw(B, LEVELS, WIDTH, seed=1),
        draw(B, LEVELS, WIDTH, seed=2),
    ]
    assert_same(partial(modulated_norm, runs=RUNS, eps=1e-6), formula, given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gated_sum(dtype: torch.dtype) -> None:
    def formula(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        return (x.float() + by_token(gate, RUNS) * y.float()).to(x.dtype)

    given = [
        draw(B, TOKENS, WIDTH, seed=0, dtype=dtype),
        draw(B, LEVELS, WIDTH, seed=1),
        draw(B, TOKENS, WIDTH, seed=2, dtype=dtype),
    ]
    assert_same(partial(gated_sum, runs=RUNS), formula, given)


def test_one_level_for_a_whole_stream() -> None:
    x, y = (draw(B, TOKENS, WIDTH, seed=i) for i in (0, 1))
    gate = draw(B, 1, WIDTH, seed=2)
    assert_same(partial(gated_sum, runs=((0, 1, TOKENS),)), lambda x, g, y: x + g * y, [x, gate, y])


def test_samples_may_share_a_level() -> None:
    def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed = F.layer_norm(x, (WIDTH,), eps=1e-6)
        return normed * (1 + by_token(scale, RUNS)) + by_token(shift, RUNS)

    x, y = (draw(B, TOKENS, WIDTH, seed=i) for i in (0, 1))
    one, each = draw(1, LEVELS, WIDTH, seed=2), draw(B, LEVELS, WIDTH, seed=3)
    sums = partial(gated_sum, runs=RUNS), lambda x, g, y: x + by_token(g, RUNS) * y
    assert_same(*sums, [x, one, y])
    for vectors in ([one, each], [each, one]):
        assert_same(partial(modulated_norm, runs=RUNS, eps=1e-6), norm, [x, *vectors])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_weights", DTYPES)
def test_norms_with_weights(dtype: torch.dtype, of_weights: torch.dtype) -> None:
    def rms(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        length = (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return (wide * length * weight.float()).to(x.dtype)

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = x.float()
        return F.layer_norm(wide, (WIDTH,), weight.float(), bias.float(), 1e-6).to(x.dtype)

    x = draw(B, TOKENS, WIDTH, seed=0, dtype=dtype)
    for made, formula in ((RMSNorm(WIDTH, 1e-6), rms), (Fp32LayerNorm(WIDTH, 1e-6), layer)):
        norm = made.to(of_weights)
        for i, weight in enumerate(norm.parameters()):
            weight.data = draw(WIDTH, seed=5 + i).data.to(of_weights)
        assert_same(lambda x, *_, norm=norm: norm(x), formula, [x, *norm.parameters()])


def test_frozen_weights_and_inputs_ask_for_nothing() -> None:
    x, norm = draw(B, TOKENS, WIDTH, seed=0), RMSNorm(WIDTH, 1e-6)
    norm.weight.requires_grad_(False)
    norm(x).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None
    # What nobody trains leaves no graph behind.
    assert norm(x.detach()).grad_fn is None


def test_what_has_one_vector_or_none_is_normed_too() -> None:
    for shape in ((WIDTH,), (0, TOKENS, WIDTH)):
        for norm in (RMSNorm(WIDTH, 1e-6), Fp32LayerNorm(WIDTH, 1e-6)):
            x = draw(*shape, seed=0)
            assert_same(
                lambda x, *_, norm=norm: norm(x), partial(plainly, norm), [x, *norm.parameters()]
            )


def test_prefixes_are_slices() -> None:
    x = draw(B, 2, TOKENS, 4, seed=0)
    ends = [3, 7, TOKENS]

    def ours(x: Tensor) -> Tensor:
        return torch.cat([part * (i + 1) for i, part in enumerate(prefixes(x, ends))], dim=2)

    def slices(x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :end] * (i + 1) for i, end in enumerate(ends)], dim=2)

    assert_same(ours, slices, [x])


def test_what_is_kept_is_what_was_given() -> None:
    """In bf16 nothing of the size of the stream is kept in fp32."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x, y = (draw(B, TOKENS, WIDTH, seed=i, dtype=torch.bfloat16) for i in (0, 1))
    vector = draw(B, LEVELS, WIDTH, seed=2)
    norms = RMSNorm(WIDTH, 1e-6), Fp32LayerNorm(WIDTH, 1e-6)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        modulated_norm(x, vector, vector, RUNS, 1e-6)
        gated_sum(x, vector, y, RUNS)
        for norm in norms:
            norm(x)
    streams = [t for t in kept if t.shape == x.shape]
    assert {t.dtype for t in streams} == {torch.bfloat16}
    assert {t.data_ptr() for t in streams} == {x.data_ptr(), y.data_ptr()}


def test_compilers_see_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (draw(B, TOKENS, WIDTH, seed=i) for i in (0, 1))
    vector = draw(B, LEVELS, WIDTH, seed=2)
    rms, layer = RMSNorm(WIDTH, 1e-6), Fp32LayerNorm(WIDTH, 1e-6)
    gelu = GeluProjection(WIDTH, 3 * WIDTH)

    def everything() -> list[Tensor]:
        normed = modulated_norm(x, vector, vector, RUNS, 1e-6)
        result = gelu(layer(rms(gated_sum(normed, vector, y, RUNS))))
        parts = (rms, layer, gelu)
        inputs = [x, y, vector, *(p for part in parts for p in part.parameters())]
        return [result, *torch.autograd.grad(result.square().sum(), inputs)]

    ours = everything()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for one, other in zip(ours, everything(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

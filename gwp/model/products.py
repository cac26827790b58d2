"""The products of inference as the machine computes them fastest: linear maps (packed, transposed, in 8 bits) and attention."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Numbers in a weight from which on packing pays: a call of the packed product takes 15 microseconds more to begin.
_PACKED = 1 << 16
# Keys up to which plain products, with all scores in memory, beat the fused kernel on the CPU; measured in fp32 with 48 to 289 queries.
_FEW_KEYS = 192


class PackedLinear:
    """`x W^T + b`, with the weight in the layout that the machine multiplies fastest; then tanh-GELU, or `add`, if asked for.

    fp32 on the CPU: MKL packs the weight anew in every call, which costs a small batch of tokens up to half its time; oneDNN takes it
    packed beforehand, and does what follows on the way out. For narrow weights MKL is faster when they lie transposed.
    """

    def __init__(self, *parts: nn.Linear, int8: bool = False) -> None:
        one = len(parts) == 1
        weight = parts[0].weight.detach() if one else torch.cat([part.weight for part in parts])
        self.bias = parts[0].bias.detach() if one else torch.cat([part.bias for part in parts])
        exact = weight.device.type == "cpu" and weight.dtype == torch.float32
        self.quantised = _quantised(weight, self.bias) if int8 else None
        self.packed = not int8 and exact and weight.numel() >= _PACKED and _can_pack()
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        elif not int8:
            self.weight = weight.t().contiguous().t() if exact else weight

    def __call__(self, x: Tensor, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        if not self.packed:
            if self.quantised is None:
                y = F.linear(x, self.weight, self.bias)
            else:
                y = torch.ops.quantized.linear_dynamic(x, self.quantised, True)
            y = F.gelu(y, approximate="tanh") if gelu else y
            return y if add is None else y.add_(add)
        # The overloads by name; left to choose, torch would match the arguments anew in every call.
        packed = torch.ops.mkldnn._linear_pointwise
        if add is not None:
            out: Tensor = packed.binary(x, add, self.weight, self.bias, "add")
        elif gelu:
            out = packed.default(x, self.weight, self.bias, "gelu", [], "tanh")
        else:
            out = packed.default(x, self.weight, self.bias, "none", [], "")
        return out


def _quantised(weight: Tensor, bias: Tensor) -> object:
    """For `linear_dynamic`: int8 with one scale per output; inputs get one scale per call."""
    scales = (weight.abs().amax(1) / 127).clamp(min=1e-12).double()
    with warnings.catch_warnings():
        # Of a form that torch means to replace; its successor is not there yet.
        warnings.simplefilter("ignore", UserWarning)
        rows = torch.quantize_per_channel(weight, scales, torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(rows, bias)


def _can_pack() -> bool:
    # What torch's own compiler calls; it may change with torch, and then the ordinary product does.
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k) v from `[B, H, L, h]`, `[B, H, h, N]` and `[B, H, N, h]` to `[B, L, H * h]`; the scale is in the queries."""
    if q.device.type == "cpu" and q.dtype is torch.float32 and values.shape[2] <= _FEW_KEYS:
        out = torch.softmax(q @ keys, -1) @ values
    else:
        out = F.scaled_dot_product_attention(q, keys.mT, values, scale=1.0)
    return out.transpose(1, 2).flatten(2)

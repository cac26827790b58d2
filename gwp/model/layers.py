"""Parts of the transformer: embodiment-specific projections, conditioning on noise level and
text, rotary positions.

Shape legend: B batch, L tokens, m noise levels of a stream, D expert width, H heads, h head
width, I inner width (H * h), E embodiments, d channels. A suffix says the shape: `x_BLD` is
`[B, L, D]`.
Sources: Wan 2.2 blocks and GigaWorld-Policy as published (parameter names are theirs).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwp.errors import GwpError
from gwp.model.config import Group, ModelConfig


class EmbodimentLinear(nn.Module):
    """A linear map with one weight per embodiment, `y = x W[e] + b[e]`; weights are stored `[E,
    in, out]`.
    """

    def __init__(self, embodiments: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embodiments, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(embodiments, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # As nn.Linear draws both, here with `in` in the middle of the shape.
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x_BLd: Tensor, embodiment_B: Tensor) -> Tensor:
        """`[B, L, in]` to `[B, L, out]`, each row by the weight of its embodiment, int64."""
        # Each row of the batch has the matrix of its own robot, so it is a batched product.
        bias_B1d = self.bias[embodiment_B].unsqueeze(1)
        return torch.baddbmm(bias_B1d, x_BLd, self.weight[embodiment_B])


ACTION_WIDTHS = (128, 256)
"""Inner widths of the action encoder and, from behind, decoder, as published."""


class ActionEncoder(nn.Module):
    """State or action vectors `[B, L, d]` to tokens `[B, L, D]`; only the first layer is
    embodiment-specific.
    """

    def __init__(self, embodiments: int, channels: int, width: int) -> None:
        super().__init__()
        # GELU by erf is published; text and feed-forward take it by tanh.
        narrow, wide = ACTION_WIDTHS
        self.in_proj = EmbodimentLinear(embodiments, channels, narrow)
        self.mid_proj = nn.Linear(narrow, wide)
        self.out_proj = nn.Linear(wide, width)

    def forward(self, x_BLd: Tensor, embodiment_B: Tensor) -> Tensor:
        """Vectors `[B, L, d]` in the dtype of the weights to tokens `[B, L, D]`."""
        x = F.gelu(self.in_proj(x_BLd, embodiment_B))
        x = F.gelu(self.mid_proj(x))
        return self.out_proj(x)


class ActionDecoder(nn.Module):
    """Action tokens `[B, L, D]` to velocities `[B, L, d]`; only the last layer is
    embodiment-specific.
    """

    def __init__(self, embodiments: int, channels: int, width: int) -> None:
        super().__init__()
        narrow, wide = ACTION_WIDTHS
        self.in_proj = nn.Linear(width, wide)
        self.mid_proj = nn.Linear(wide, narrow)
        self.out_proj = EmbodimentLinear(embodiments, narrow, channels)

    def forward(self, x_BLD: Tensor, embodiment_B: Tensor) -> Tensor:
        """Tokens `[B, L, D]` to velocities `[B, L, d]`, in the dtype of the weights."""
        x = F.gelu(self.in_proj(x_BLD))
        x = F.gelu(self.mid_proj(x))
        return self.out_proj(x, embodiment_B)


class Fp32Linear(nn.Linear):
    """A linear map computed in fp32, whatever its weights lie in. A class of its own, because
    sharding engines bring weights where a module is called.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to fp32 `[..., out]`."""
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class TwoLayer(nn.Module):
    """Linear, activation, linear; the names `linear_1`, `linear_2` are those of the published
    checkpoints.
    """

    def __init__(self, in_features: int, width: int, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.linear_1 = linear(in_features, width)
        self.linear_2 = linear(width, width)


class ConditionEmbedder(nn.Module):
    """Noise level and text of one expert: what its tokens are modulated with, and what they
    attend to beside each other.
    """

    def __init__(self, width: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        # What modulates every token is fp32 throughout: bf16 has 8 bits for it.
        self.time_embedder = TwoLayer(freq_dim, width, Fp32Linear)
        self.time_proj = Fp32Linear(width, 6 * width)
        self.text_embedder = TwoLayer(text_dim, width)

    def time(self, timestep_Bm: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps `[B, m]` (noise level times 1000) to the embedding `[B, m, D]` that heads
        use and the modulation `[B, m, 6, D]` of the blocks, both fp32.
        """
        # As diffusers' `Timesteps` with flip_sin_to_cos and no shift: cosines first.
        half = self.freq_dim // 2
        step = torch.arange(half, dtype=torch.float32, device=timestep_Bm.device)
        frequency = torch.exp(-math.log(10000.0) * step / half)
        # Angles are fp32: bf16 has no more than 8 bits for a timestep of up to 1000.
        angle = timestep_Bm.float().unsqueeze(-1) * frequency
        wave = torch.cat([angle.cos(), angle.sin()], dim=-1)
        temb_BmD = self.time_embedder.linear_2(F.silu(self.time_embedder.linear_1(wave)))
        mod_Bm6D = self.time_proj(F.silu(temb_BmD)).unflatten(-1, (6, -1))
        return temb_BmD, mod_Bm6D

    def text(self, text_BLt: Tensor) -> Tensor:
        """Embeddings of instructions `[B, L_t, text_dim]` to the expert's width, `[B, L_t, D]`
        in the dtype of the weights.
        """
        first, second = self.text_embedder.linear_1, self.text_embedder.linear_2
        x_BLD = first(text_BLt.to(first.weight.dtype))
        return second(F.gelu(x_BLD, approximate="tanh"))


class PatchEmbedding(nn.Module):
    """Latent patches to tokens. Weights have the shape of the published Conv3d; kernel equals
    stride, so it is a matrix product.
    """

    def __init__(self, in_channels: int, width: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, in_channels, *patch_size))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Over the flattened kernel, as the matrix that it is.
        nn.init.xavier_uniform_(self.weight.view(self.weight.shape[0], -1))
        nn.init.zeros_(self.bias)

    def forward(self, latents_BCThw: Tensor) -> Tensor:
        """`[B, C, T, h, w]` to `[B, T * h/2 * w/2, D]`, frame-major, then rows, then columns."""
        # Flattened, the Conv3d kernel has the order of a patch: channel, row, column.
        return F.linear(self.patches(latents_BCThw), self.weight.flatten(1), self.bias)

    def patches(self, latents_BCThw: Tensor) -> Tensor:
        """`[B, C, T, h, w]` to the numbers of each patch, `[B, T * h/2 * w/2, C * 4]`, in the dtype
        of the weights.
        """
        B, C, T, h, w = latents_BCThw.shape
        _, ph, pw = self.weight.shape[2:]
        # To [B, T, rows, columns, C, ph, pw]; a patch is one frame deep.
        x = latents_BCThw.reshape(B, C, T, h // ph, ph, w // pw, pw).permute(0, 2, 3, 5, 1, 4, 6)
        return x.reshape(B, T * (h // ph) * (w // pw), C * ph * pw).to(self.weight.dtype)


def unpatchify(
    tokens_BLp: Tensor, frames: int, rows: int, columns: int, patch_size: tuple[int, int, int]
) -> Tensor:
    """Head output `[B, T * rows * columns, ph * pw * C]` (channel fastest) to latents `[B, C,
    T, rows * ph, columns * pw]`.
    """
    _, ph, pw = patch_size
    # The head writes channels last within a patch, where the embedding reads them first.
    x = tokens_BLp.unflatten(1, (frames, rows, columns)).unflatten(-1, (ph, pw, -1))
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(3, 4).flatten(4, 5)


def rotary_axis(dim: int, positions: Tensor) -> Tensor:
    """Angles `[n, dim / 2]` of one axis, float64, theta 10000."""
    frequency = 1.0 / 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.outer(positions.to(torch.float64), frequency)


def visual_rotary(head_dim: int, frames: range, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """cos, sin `[T * rows * columns, h / 2]` fp32; axes (frame, row, column) take h - 4 (h //
    6), 2 (h // 6), 2 (h // 6) dims.
    """
    # Of 128: 44 for frames, 42 for rows, 42 for columns.
    side = 2 * (head_dim // 6)
    grid = (len(frames), rows, columns, -1)
    frame = rotary_axis(head_dim - 2 * side, torch.arange(frames.start, frames.stop))
    row = rotary_axis(side, torch.arange(rows))
    column = rotary_axis(side, torch.arange(columns))
    angles = [
        frame[:, None, None].expand(grid),
        row[None, :, None].expand(grid),
        column[None, None].expand(grid),
    ]
    angle = torch.cat(angles, dim=-1).flatten(0, 2)
    # Rounded to fp32 only here, as the published model does: its tables are float64 until then.
    return angle.cos().float(), angle.sin().float()


def action_rotary(head_dim: int, positions: range) -> tuple[Tensor, Tensor]:
    """cos, sin `[n, h / 2]` fp32 over the full head width; the state is position 0, actions
    count from 1.
    """
    angle = rotary_axis(head_dim, torch.arange(positions.start, positions.stop))
    return angle.cos().float(), angle.sin().float()


def rotate(x_BLHh: Tensor, cos_Lh: Tensor, sin_Lh: Tensor) -> Tensor:
    """Rotate interleaved pairs (x_2i, x_2i+1); tables are `[L, h / 2]` fp32."""
    # Published weights were trained with neighbours as pairs, not with the two halves.
    pairs = x_BLHh.float().unflatten(-1, (-1, 2))
    if pairs.device.type == "cpu" and not torch.compiler.is_compiling():
        # As complex numbers, which compilers do not know: one pass over memory instead of seven.
        turned = torch.view_as_complex(pairs) * torch.complex(cos_Lh, sin_Lh)[:, None]
        return torch.view_as_real(turned).flatten(-2).to(x_BLHh.dtype)
    even, odd = pairs.unbind(-1)
    cos, sin = cos_Lh[:, None], sin_Lh[:, None]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x_BLHh.dtype)


def rotary(config: ModelConfig, group: Group, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """cos, sin `[L, h / 2]` fp32 of the positions of a group: `shape` is that of its vectors
    `[B, L, d]`, or of its frames `[B, C, T, h, w]`. GwpError past the model's reach.
    """
    head_dim, limit = config.attention_head_dim, config.rope_max_seq_len
    if len(shape) == 3:
        extent = shape[1] + 1
        cos, sin = action_rotary(head_dim, range(1) if group == "S" else range(1, extent))
    else:
        T, h, w = shape[2:]
        # The reference is frame 0, the future follows it. Frames of the state and, before it, of
        # actions come first in time: so the video stands where it does without them.
        first = {"A": -1 - T, "S": -T, "R": 0, "F": 1}[group]
        rows, columns = h // config.patch_size[1], w // config.patch_size[2]
        extent = max(first + T, -first, rows, columns)
        cos, sin = visual_rotary(head_dim, range(first, first + T), rows, columns)
    if extent > limit:
        raise GwpError(
            f"{extent} positions on one axis of group {group}; rope_max_seq_len of the model is {limit}"
        )
    return cos, sin

"""Is this the checkpoint that it claims to be? Cosines against a reference catch transposes and
layers off by one.

Matrices of two unrelated layers are nearly orthogonal (cosine about 0), so a matrix must be
closer to the same-named one than to that of the next layer. Norms and biases are alike
everywhere and prove nothing; they are listed, not judged.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from gwp.model.weights.checkpoint import Checkpoint
from gwp.model.weights.names import dense_name, visual_name

# Fine-tuned matrices stay close to what they began as: an audit of the released GWP-0.5 against
# Wan 2.2 found 0.975 on average and 0.75 at least.
_ALIKE = 0.5
# Linear layers, and the patch embedding.
_MATRIX_DIMS = (2, 5)
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


@dataclass(frozen=True)
class Likeness:
    """Cosines of one tensor with its reference.

    same:       with the tensor of the same name
    following:  with that of the next layer; None outside of layers, after the last one, and
                where shapes differ
    transposed: with the same-named one transposed; None unless square
    """

    name: str
    reference: str
    same: float
    following: float | None
    transposed: float | None
    matrix: bool

    @property
    def verdict(self) -> str:
        """`ok`, or what is suspicious: `transposed`, `next layer`, `unlike`. Only matrices are
        judged.
        """
        if not self.matrix:
            return "ok"
        if self.transposed is not None and self.transposed > self.same:
            return "transposed"
        if self.following is not None and self.following > self.same:
            return "next layer"
        return "ok" if self.same >= _ALIKE else "unlike"


def similarity(checkpoint: Checkpoint, reference: Checkpoint) -> list[Likeness]:
    """Every tensor that both hold, least alike first; a wider reference is cut to its leading
    slices. Reads both, tensor by tensor.

    A mixture is compared with a dense reference expert by expert, a dense model with a
    mixture's visual expert.
    """
    rows = []
    for name in checkpoint.tensors:
        counterpart = _counterpart(name, checkpoint, reference)
        if counterpart is None:
            continue
        # One pair at a time: neither checkpoint has to fit into memory.
        tensor = checkpoint.read(name).float()
        other = _cut(reference.read(counterpart).float(), tensor)
        # Of the others a transpose would not have been loaded.
        square = tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]
        rows.append(
            Likeness(
                name,
                counterpart,
                _cosine(tensor, other),
                _following(tensor, counterpart, reference),
                _cosine(tensor, other.T) if square else None,
                name.endswith(".weight") and tensor.ndim in _MATRIX_DIMS,
            )
        )
    return sorted(rows, key=lambda row: (row.verdict == "ok", not row.matrix, row.same))


def _counterpart(name: str, checkpoint: Checkpoint, reference: Checkpoint) -> str | None:
    if (checkpoint.family == "gwp05") == (reference.family == "gwp05"):
        other = name
    else:
        other = dense_name(name) if checkpoint.family == "gwp05" else visual_name(name)
    tensor = reference.tensors.get(other)
    return other if tensor is not None and _contains(tensor, checkpoint.tensors[name]) else None


def _contains(whole: Tensor, part: Tensor) -> bool:
    return whole.ndim == part.ndim and all(
        a >= b for a, b in zip(whole.shape, part.shape, strict=True)
    )


def _cut(whole: Tensor, part: Tensor) -> Tensor:
    return whole[tuple(slice(n) for n in part.shape)]


def _following(tensor: Tensor, counterpart: str, reference: Checkpoint) -> float | None:
    if not (match := _BLOCK.match(counterpart)):
        return None
    name = f"blocks.{int(match[1]) + 1}.{counterpart[match.end() :]}"
    if name not in reference.tensors or not _contains(reference.tensors[name], tensor):
        return None
    return _cosine(tensor, _cut(reference.read(name).float(), tensor))


def _cosine(a: Tensor, b: Tensor) -> float:
    """0 when one of them is all zeros."""
    x, y = a.reshape(-1), b.reshape(-1)
    norms = float(torch.linalg.vector_norm(x)) * float(torch.linalg.vector_norm(y))
    return float(torch.dot(x, y)) / norms if norms else 0.0

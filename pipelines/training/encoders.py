"""The frozen models of a run: what turns a batch of the stream into what the transformer sees.

The training loop owns one `Encoders` per rank. They are never trained and lie in the run folder;
where the run has a cache of latents, the video codec is not loaded at all.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gwp import storage
from gwp.data.records import StreamBatch
from gwp.model.codecs.cached import CachedTextEncoder, from_stored
from gwp.model.codecs.text import TextTable, load_text_encoder
from gwp.model.codecs.video import load_video_codec
from gwp.model.objective import Batch
from pipelines.training.prepare import PreparedRun


class Encoders:
    """Video codec and text encoder of a run, or its cache of what they say."""

    def __init__(self, prepared: PreparedRun, scratch: Path, device: torch.device) -> None:
        self._device = device
        if prepared.cache:
            self._text = TextTable(CachedTextEncoder(prepared.cache))
        else:
            for part in ("codec", "text"):
                storage.download(storage.join(prepared.uri, part), scratch / part)
            self._codec = load_video_codec(scratch / "codec")
            self._text = TextTable(load_text_encoder(scratch / "text"))
        texts = storage.read_bytes(storage.join(prepared.uri, "texts.json"))
        self._texts: dict[str, str] = json.loads(texts)

    def batch(self, raw: StreamBatch, keep: np.ndarray) -> Batch:
        """The samples of a batch that are whole, encoded, on this rank's device.

        `raw`: columns of the stream, one row a sample. `keep`: bool `[batch]`, at least one.
        """

        def kept(column: np.ndarray) -> Tensor:
            # The mask copies: torch warns of arrays of Ray's store, which are read-only.
            return torch.from_numpy(np.ascontiguousarray(column[keep])).to(self._device)

        with torch.no_grad():
            # fp32 `[B, C, T_lat, h, w]` either way.
            if "latents" in raw:
                latents = from_stored(kept(raw["latents"]))
            else:
                latents = self._codec.encode(kept(raw["frames"]))
            text = self._text.lookup([self._texts[key] for key in raw["text_key"][keep]])
        # `[B, d]`, in the batch `[B, 1, d]`: the state is one token.
        state = kept(raw["state"])
        return Batch(
            latents=latents,
            state=state.reshape(state.shape[0], 1, -1),
            actions=kept(raw["actions"]),
            step_valid=kept(raw["step_valid"]),
            dim_valid=kept(raw["dim_valid"]),
            text=text.to(self._device),
            embodiment=kept(raw["embodiment_id"]),
        )

    def text_like(self) -> Tensor:
        """An uninitialised text `[1, rows, dim]`, for a pass whose result does not count."""
        return torch.empty(1, self._text.rows, self._text.dim, device=self._device)

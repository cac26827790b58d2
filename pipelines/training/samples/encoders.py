"""The frozen models of a run: what turns a batch of the stream into what the transformer sees.

The training loop owns one `Encoders` per rank. They are never trained and lie in the run folder;
where the run has a cache of latents, the video codec is not loaded at all; the text encoder only
where `prepare` left no embeddings.
"""

import json

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gwp import storage
from gwp.data.records import StreamBatch
from gwp.model.codecs.cached import CachedTextEncoder, from_stored
from gwp.model.codecs.embeddings import TABLE, StoredTexts
from gwp.model.codecs.text import TextTable, load_text_encoder
from gwp.model.codecs.video import load_video_codec
from gwp.model.objective import Batch
from pipelines.training.engine.node import Node
from pipelines.training.measure.clock import Clock
from pipelines.training.prepare import EMBEDDINGS, PreparedRun


class Encoders:
    """Video codec and text encoder of a run, or its cache of what they say.

    flop: arithmetic of the video codec for a sample of the newest batch; 0 with a cache
    """

    def __init__(self, prepared: PreparedRun, node: Node, device: torch.device) -> None:
        self._device = device
        self.flop = 0
        # By the shape of a sample's frames.
        self._flop_of: dict[torch.Size, int] = {}
        if prepared.cache:
            self._text = TextTable(CachedTextEncoder(prepared.cache))
        else:
            folder = node.folder

            def bring() -> None:
                stored = storage.exists(storage.join(prepared.uri, EMBEDDINGS, TABLE))
                # Where texts are too many, or of an earlier version, workers encode them.
                for part in ("codec", EMBEDDINGS if stored else "text"):
                    storage.download(storage.join(prepared.uri, part), folder / part)

            node.once(bring)
            self._codec = load_video_codec(folder / "codec")
            embeddings = folder / EMBEDDINGS
            self._text = TextTable(
                StoredTexts(embeddings)
                if embeddings.is_dir()
                else load_text_encoder(folder / "text")
            )
        texts = storage.read_bytes(storage.join(prepared.uri, "texts.json"))
        self._texts: dict[str, str] = json.loads(texts)

    def batch(self, raw: StreamBatch, rows: slice, clock: Clock | None = None) -> Batch:
        """Some samples of a batch, encoded, on this rank's device. Those that could not be read
        are zeros.

        `raw`: columns of the stream, one row a sample; `clock`: told of the phases `transfer` and
        `encode`.
        """
        clock = clock or Clock()
        ok = raw["ok"][rows].astype(bool)

        def some(column: np.ndarray) -> Tensor:
            # A copy: torch warns of arrays of Ray's store, which are read-only.
            return torch.from_numpy(column[rows].copy()).to(self._device)

        with clock.within("transfer"):
            pictures = some(raw["latents"] if "latents" in raw else raw["frames"])
            # `[B, d]`, in the batch `[B, 1, d]`: the state is one token.
            state = some(raw["state"])
            actions, robots = some(raw["actions"]), some(raw["embodiment_id"])
            step_valid, dim_valid = some(raw["step_valid"]), some(raw["dim_valid"])
        with clock.within("encode"), torch.no_grad():
            # fp32 `[B, C, T_lat, h, w]` either way.
            latents = from_stored(pictures) if "latents" in raw else self._encoded(pictures)
            text = self._text_of(raw["text_key"][rows], ok).to(self._device)
        return Batch(
            latents=latents,
            state=state.reshape(state.shape[0], 1, -1),
            actions=actions,
            step_valid=step_valid,
            dim_valid=dim_valid,
            text=text,
            embodiment=robots,
            ok=torch.from_numpy(ok).to(self._device),
        )

    def _encoded(self, frames: Tensor) -> Tensor:
        shape = frames.shape[1:]
        if shape not in self._flop_of:
            # Of one sample more, whose result nobody takes: torch may count by other kernels than
            # those that it computes with.
            with FlopCounterMode(display=False) as counter:
                self._codec.encode(frames[:1])
            self._flop_of[shape] = int(counter.get_total_flops())
        self.flop = self._flop_of[shape]
        return self._codec.encode(frames)

    def decode(self, latents: Tensor) -> Tensor:
        """fp32 `[B, C, T_lat, h, w]` to uint8 frames `[B, T, H, W, 3]`; not with a cache."""
        return self._codec.decode(latents)

    def _text_of(self, keys: np.ndarray, ok: np.ndarray) -> Tensor:
        """Embeddings `[B, rows, dim]`; a sample that could not be read has no instruction."""
        if ok.all():
            return self._text.lookup([self._texts[key] for key in keys])
        text = torch.zeros(len(keys), self._text.rows, self._text.dim)
        if ok.any():
            text[ok] = self._text.lookup([self._texts[key] for key in keys[ok]]).to(text)
        return text

    def text_like(self) -> Tensor:
        """An uninitialised text `[1, rows, dim]`, for a pass whose result does not count."""
        return torch.empty(1, self._text.rows, self._text.dim, device=self._device)

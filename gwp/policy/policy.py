"""Observation in, action chunk out: the library surface of a trained policy.

Shape legend: B observations, C latent channels, h w latent rows and columns, p actions, d model
channels.
"""

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gwp.errors import BundleError
from gwp.model.codecs.text import TextEncoder, TextTable, load_text_encoder
from gwp.model.codecs.video import VideoCodec, load_video_codec
from gwp.model.inference.fused import FusedTransformer
from gwp.model.inference.layout import TextKeys
from gwp.model.transformer import Tokens, WorldActionTransformer
from gwp.model.weights import load_model
from gwp.policy.bundle import Bundle, read_bundle
from gwp.policy.contract import PolicyContract
from gwp.policy.engine.graphs import RecordedSingle
from gwp.policy.engine.solver import Prefix, Shapes, Solver
from gwp.policy.inputs import Batch, Inputs, Prepared
from gwp.policy.locate import locate
from gwp.protocol.messages import ActionChunk, Observation

TEXTS_KEPT = 16


class Timer:
    """Milliseconds per phase; waits for the device only at phase borders."""

    def __init__(self, device: torch.device) -> None:
        self.ms: dict[str, float] = {}
        self._device = device
        self._start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def total(self) -> dict[str, float]:
        return self.ms | {"total": (time.perf_counter() - self._start) * 1e3}


@dataclass(frozen=True)
class Observed:
    """Observations as the model keeps them: what follows from them is computed once, whatever
    is asked afterwards.

    reference fp32 `[B, C, 1, h, w]`, latent of the canvas. A pass over actions or future writes
    into the prefix's buffers behind the observation, so one `Observed` is for one thread at a
    time.
    """

    prepared: tuple[Prepared, ...]
    batch: Batch
    reference: Tensor
    prefix: Prefix


class Policy:
    """A policy ready to act. It holds no per-request state, so one instance may serve many
    robots and threads.

    model: not kept; its weights live on, arranged for inference, on its device and in its dtype
    steps: Euler steps of the solver instead of the bundle's own; fewer are faster and less
    exact
    """

    def __init__(
        self,
        bundle: Bundle,
        model: WorldActionTransformer,
        codec: VideoCodec,
        text: TextEncoder,
        steps: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.contract = PolicyContract.from_bundle(bundle)
        self.settings = bundle.settings
        self.codec, self.text = codec, TextTable(text)
        self.inputs = Inputs(bundle, self.contract)
        config = model.config
        if (
            config.action_channels != self.settings.model_dim
            or self.codec.channels != config.in_channels
        ):
            raise BundleError(
                f"{bundle.folder}: model takes {config.action_channels} action and "
                f"{config.in_channels} latent channels, the bundle "
                f"states {self.settings.model_dim} and its codec gives {self.codec.channels}; "
                "export the policy again"
            )
        canvas, window = self.settings.canvas, self.settings.window
        shapes = Shapes(
            window.chunk,
            (
                config.in_channels,
                canvas.height // self.codec.spatial,
                canvas.width // self.codec.spatial,
            ),
            (window.frames - 1) // self.codec.temporal,
        )
        self.solver = Solver(
            FusedTransformer(model), shapes, steps or self.settings.steps, self.settings.shift
        )
        self.device = self.solver.model.device
        # On the CPU a recording would only copy.
        self._single = (
            RecordedSingle(self.solver, self.text.rows) if self.device.type == "cuda" else None
        )
        self._texts: OrderedDict[str, TextKeys] = OrderedDict()
        self._texts_lock = threading.Lock()

    @classmethod
    def load(
        cls,
        uri: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        steps: int | None = None,
    ) -> "Policy":
        """From a path, `s3://bucket/bundle`, or `models:/name@alias`. Every hash, shape and
        width is checked.
        """
        place, registered = locate(str(uri))
        bundle = read_bundle(place)
        expected = registered.get("policy_id", bundle.id)
        if expected != bundle.id:
            raise BundleError(
                f"{uri}: registered as policy {expected}, {place} holds {bundle.id}; promote it again"
            )
        folder = bundle.folder
        model = load_model(folder / "model", device, dtype)
        return cls(
            bundle,
            model,
            load_video_codec(folder / "codec"),
            load_text_encoder(folder / "text"),
            steps,
        )

    def with_steps(self, steps: int) -> "Policy":
        """The same policy with another number of Euler steps; weights and everything else are
        shared.
        """
        other = copy.copy(self)
        other.solver = Solver(self.solver.model, self.solver.shapes, steps, self.settings.shift)
        other._single = RecordedSingle(other.solver, self.text.rows) if self._single else None
        return other

    @property
    def id(self) -> str:
        return self.bundle.id

    def act(self, observation: Observation | Observed) -> ActionChunk:
        """The next action chunk of one robot; ObservationError when the observation does not
        fit.
        """
        return self.act_batch(
            [observation] if isinstance(observation, Observation) else observation
        )[0]

    def act_batch(self, observations: Sequence[Observation] | Observed) -> list[ActionChunk]:
        """One chunk per observation, computed together. All are checked first; one that does
        not fit raises before any work.
        """
        timer = Timer(self.device)
        seen = (
            observations
            if isinstance(observations, Observed)
            else self._observe(observations, timer)
        )
        with torch.inference_mode(), timer.phase("denoise"):
            y = self._of(seen.batch).act(
                seen.prefix, seen.batch.noise, seen.batch.given, seen.batch.committed
            )
        with timer.phase("postprocess"):
            chunks = [
                self.chunk(x, row) for x, row in zip(seen.prepared, y.cpu().numpy(), strict=True)
            ]
        timings = timer.total()
        return [replace(chunk, timings=timings) for chunk in chunks]

    def observe(self, observations: Sequence[Observation] | Observation) -> Observed:
        """Everything that does not depend on actions, once: hand it to `act`, then to
        `imagine`.
        """
        return self._observe(
            [observations] if isinstance(observations, Observation) else observations,
            Timer(self.device),
        )

    def imagine(self, observation: Observation | Observed, chunk: ActionChunk) -> np.ndarray:
        """What the model expects the cameras to see while `chunk` is executed: uint8 `[T, H, W,
        3]`, frame 0 is now.
        """
        return self.imagine_given(observation, chunk.actions)

    def imagine_given(
        self, observation: Observation | Observed, actions_pd: np.ndarray
    ) -> np.ndarray:
        """The same for any actions `[p, d]` in robot units, recorded ones for instance."""
        seen = observation if isinstance(observation, Observed) else self.observe(observation)
        one = seen.prepared[0]
        with torch.inference_mode():
            actions = self.inputs.normalized(one.embodiment, actions_pd, one.observation)[None].to(
                self.device
            )
            future = self.solver.imagine(seen.prefix, actions, self._future_noise(seen))
            return self._video(seen, future)

    def act_joint(self, observation: Observation) -> tuple[ActionChunk, np.ndarray]:
        """Actions and video decoded together, every token at every step: what acting alone
        saves is measured against this.
        """
        timer = Timer(self.device)
        with torch.inference_mode():
            prepared, batch, reference, text = self._encode([observation], timer)
            prefix = Prefix(self.solver.cache(1), text, batch.embodiment)
            seen = Observed(prepared, batch, reference, prefix)
            with timer.phase("denoise"):
                y, future = self.solver.joint(
                    prefix, Tokens(batch.state, reference), batch.noise, self._future_noise(seen)
                )
            with timer.phase("postprocess"):
                video = self._video(seen, future)
                chunk = self.chunk(prepared[0], y[0].cpu().numpy())
        return replace(chunk, timings=timer.total()), video

    def text_keys(self, prompts: Sequence[str]) -> TextKeys:
        """Cross-attention keys and values `[layers, B, L_t, H, h]`; those of the last
        instructions are kept.
        """
        rows = [self._text_keys(prompt) for prompt in prompts]
        if len(set(prompts)) == 1:
            sides = [
                {e: t.expand(-1, len(rows), -1, -1, -1) for e, t in side.items()}
                for side in (rows[0].keys, rows[0].values)
            ]
        else:
            experts = rows[0].keys
            sides = [
                {e: torch.cat([getattr(r, side)[e] for r in rows], dim=1) for e in experts}
                for side in ("keys", "values")
            ]
        return TextKeys(*sides)

    def latents(self, canvas: Tensor) -> Tensor:
        """Reference latents fp32 `[B, C, 1, h, w]` of canvases uint8 `[B, 1, H, W, 3]`."""
        return self.codec.encode(canvas)

    def chunk(self, prepared: Prepared, y_pd: np.ndarray) -> ActionChunk:
        """The answer to one observation from denoised actions `[p, d]`."""
        actions, flags = self.inputs.finish(prepared, y_pd)
        return ActionChunk(actions, self.id, prepared.observation.delay, {}, flags)

    def _observe(self, observations: Sequence[Observation], timer: Timer) -> Observed:
        with torch.inference_mode():
            prepared, batch, reference, text = self._encode(observations, timer)
            with timer.phase("prefix"):
                prefix = self._of(batch).observe(batch.state, reference, text, batch.embodiment)
        return Observed(prepared, batch, reference, prefix)

    def _encode(
        self, observations: Sequence[Observation], timer: Timer
    ) -> tuple[tuple[Prepared, ...], Batch, Tensor, TextKeys]:
        with timer.phase("preprocess"):
            prepared = tuple(self.inputs.prepare(o) for o in observations)
            batch = self.inputs.batch(prepared, self.device)
        with timer.phase("vae"):
            reference = self.latents(batch.canvas)
        with timer.phase("text"):
            text = self.text_keys([x.observation.prompt for x in prepared])
        return prepared, batch, reference, text

    def _of(self, batch: Batch) -> Solver | RecordedSingle:
        return self.solver if self._single is None or len(batch.state) > 1 else self._single

    def _text_keys(self, prompt: str) -> TextKeys:
        with self._texts_lock:
            if prompt in self._texts:
                self._texts.move_to_end(prompt)
                return self._texts[prompt]
        with torch.inference_mode():
            keys = self.solver.model.text_keys(self.text.lookup([prompt]).to(self.device))
        with self._texts_lock:
            self._texts[prompt] = keys
            while len(self._texts) > TEXTS_KEPT:
                self._texts.popitem(last=False)
        return keys

    def _future_noise(self, seen: Observed) -> Tensor:
        C, h, w = self.solver.shapes.latent
        return self.inputs.future_noise(
            seen.prepared, (C, self.solver.shapes.future, h, w), self.device
        )

    def _video(self, seen: Observed, future: Tensor) -> np.ndarray:
        return self.codec.decode(torch.cat([seen.reference, future], dim=2))[0].cpu().numpy()

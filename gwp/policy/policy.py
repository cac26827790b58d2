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
from gwp.policy.admission.guard import Guard
from gwp.policy.bundle import Bundle, read_bundle
from gwp.policy.contract import PolicyContract
from gwp.policy.finite import check_finite
from gwp.policy.graphs import RecordedSingle
from gwp.policy.inputs import AdmittedObservation, Batch, Inputs
from gwp.policy.locate import locate
from gwp.policy.solver import Prefix, Shapes, Solver
from gwp.protocol.messages import ActionChunk, Observation

# Instructions whose keys are kept: for GWP-0.5 in bf16, with 64 rows, 47 MB each.
TEXTS_KEPT = 16


class Timer:
    """Milliseconds per phase of one call of `Policy`.

    It waits for the device only at phase borders.
    """

    def __init__(self, device: torch.device) -> None:
        self.ms: dict[str, float] = {}
        self._device = device
        self._start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time of the block counts as that of `name`."""
        start = time.perf_counter()
        yield
        # Kernels are only queued when their call returns.
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def total(self) -> dict[str, float]:
        """Milliseconds of each phase, and as `total` those since the timer was made."""
        return self.ms | {"total": (time.perf_counter() - self._start) * 1e3}


@dataclass(frozen=True)
class Observed:
    """Observations as the model keeps them: what follows from them alone is computed once.

    `Policy.observe` makes it; `act` and `imagine` take it in place of observations. A pass over
    actions or future writes into the prefix's buffers behind the observation, so it is for one
    thread at a time.

    reference: fp32 `[B, C, 1, h, w]`, latent of the canvas
    """

    admitted: tuple[AdmittedObservation, ...]
    batch: Batch
    reference: Tensor
    prefix: Prefix


class Policy:
    """A policy ready to act.

    It holds no per-request state, so one instance may serve many robots and threads.

    `act` answers one robot at once; to share a device among many, hand it to `gwp.policy.Engine`.

    model: not kept; its weights live on, arranged for inference, on its device and in its dtype
    steps: Euler steps of the solver instead of the bundle's own; fewer are faster and less exact
    guard: what an endpoint promises of answers beyond the bundle (limits derived from the training
        data, flags); None: nothing
    """

    def __init__(
        self,
        bundle: Bundle,
        model: WorldActionTransformer,
        codec: VideoCodec,
        text: TextEncoder,
        steps: int | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.bundle = bundle
        self.contract = PolicyContract.from_bundle(bundle)
        self.settings = bundle.settings
        self.codec = codec
        self.text = TextTable(text)
        self.inputs = Inputs(bundle, self.contract, guard)

        # A bundle of parts that do not belong together would fail at the first robot.
        config = model.config
        widths = (self.settings.model_dim, self.codec.channels)
        if widths != (config.action_channels, config.in_channels):
            raise BundleError(
                f"{bundle.folder}: model takes {config.action_channels} action and "
                f"{config.in_channels} latent channels, the bundle states "
                f"{self.settings.model_dim} and its codec gives {self.codec.channels}; "
                "export the policy again"
            )

        stated = (self.settings.visibility, self.settings.actions)
        for one, other in zip((config.visibility, config.actions), stated, strict=True):
            if one != other:
                raise BundleError(
                    f"{bundle.folder}: model is {one}, the bundle states {other}; export the policy "
                    "again"
                )

        # All shapes follow from the bundle: buffers and recordings are made once.
        canvas, window = self.settings.canvas, self.settings.window
        spatial, temporal = self.codec.spatial, self.codec.temporal
        latent = (config.in_channels, canvas.height // spatial, canvas.width // spatial)
        shapes = Shapes(window.chunk, latent, (window.frames - 1) // temporal)
        if config.acts_with_future and shapes.future < 1:
            raise BundleError(
                f"{bundle.folder}: a model that is {config.visibility} denoises a future when it "
                "acts, and the window has none; export the policy again"
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
        guard: Guard | None = None,
    ) -> "Policy":
        """From a path, `s3://bucket/bundle`, or `models:/name@alias`.

        Every hash, shape and width is checked, and that all weights are finite.
        """
        bundle_uri, registered = locate(str(uri))
        bundle = read_bundle(bundle_uri)
        # What is at a URI may have been replaced since it was registered.
        expected = registered.get("policy_id", bundle.id)
        if expected != bundle.id:
            raise BundleError(
                f"{uri}: registered as policy {expected}, {bundle_uri} holds {bundle.id}; "
                "promote it again"
            )
        folder = bundle.folder
        model = load_model(folder / "model", device, dtype)
        codec = load_video_codec(folder / "codec")
        text = load_text_encoder(folder / "text")
        check_finite(folder, {"model": model, "codec": codec, "text": text})
        return cls(bundle, model, codec, text, steps, guard)

    def with_steps(self, steps: int) -> "Policy":
        """The same policy with another number of Euler steps; all else is shared, weights too."""
        # Shallow: texts, their lock and the codecs are the same objects.
        other = copy.copy(self)
        other.solver = Solver(self.solver.model, self.solver.shapes, steps, self.settings.shift)
        # A recording holds the loop over the steps.
        other._single = RecordedSingle(other.solver, self.text.rows) if self._single else None
        return other

    @property
    def id(self) -> str:
        """sha256 of the bundle's manifest: what every chunk says it comes from."""
        return self.bundle.id

    def act(self, observation: Observation | Observed) -> ActionChunk:
        """The next action chunk of one robot. ObservationError when what it sends does not fit."""
        observations = [observation] if isinstance(observation, Observation) else observation
        return self.act_batch(observations)[0]

    def act_batch(self, observations: Sequence[Observation] | Observed) -> list[ActionChunk]:
        """One chunk per observation, computed together.

        All are checked first; one that does not fit raises before any work.
        """
        timer = Timer(self.device)
        observed = (
            observations
            if isinstance(observations, Observed)
            else self._observe(observations, timer)
        )
        batch = observed.batch
        with torch.inference_mode(), timer.phase("denoise"):
            # `given` and `committed` are None where no robot of the batch has promised
            # anything.
            y_Bpd = self._solver_of(batch).act(
                observed.prefix,
                batch.noise,
                batch.given,
                batch.committed,
                batch.padding,
                batch.future,
            )
        with timer.phase("postprocess"):
            # One copy from the device for all of them.
            rows = zip(observed.admitted, y_Bpd.cpu().numpy(), strict=True)
            chunks = [self.chunk(admitted, y_pd) for admitted, y_pd in rows]
        timings = timer.total()
        # One call, one time: all its chunks tell the same.
        return [replace(chunk, timings=timings) for chunk in chunks]

    def observe(self, observations: Sequence[Observation] | Observation) -> Observed:
        """Everything that does not depend on actions, once: hand it to `act`, then to
        `imagine`.
        """
        several = [observations] if isinstance(observations, Observation) else observations
        return self._observe(several, Timer(self.device))

    def imagine(self, observation: Observation | Observed, chunk: ActionChunk) -> np.ndarray:
        """What the model expects the cameras to see while `chunk` is executed.

        uint8 `[T, H, W, 3]`; frame 0 is now. The future of a model that is video-first sees no
        actions: it is what such a model acts upon, whatever `chunk` is.
        """
        return self.imagine_given(observation, chunk.actions)

    def imagine_given(
        self, observation: Observation | Observed, actions_pd: np.ndarray
    ) -> np.ndarray:
        """The same for any actions `[p, d]` in robot units, recorded ones for instance."""
        observed = observation if isinstance(observation, Observed) else self.observe(observation)
        admitted = observed.admitted[0]
        with torch.inference_mode():
            normalized_pd = self.inputs.normalized(
                admitted.embodiment, actions_pd, admitted.observation
            )
            actions_Bpd = normalized_pd[None].to(self.device)
            noise = self._future_noise(observed)
            future = self.solver.imagine(observed.prefix, actions_Bpd, noise)
            return self._video(observed, future)

    def act_joint(self, observation: Observation) -> tuple[ActionChunk, np.ndarray]:
        """Actions and video decoded together, every token at every step.

        What acting alone saves is measured against this.
        """
        timer = Timer(self.device)
        with torch.inference_mode():
            admitted, batch, reference, text = self._encode([observation], timer)
            # The cache is empty: every step computes the observation's keys anew.
            prefix = Prefix(self.solver.cache(1), text, batch.embodiment)
            observed = Observed(admitted, batch, reference, prefix)
            with timer.phase("denoise"):
                noise = self._future_noise(observed)
                tokens = Tokens(batch.state, reference)
                y_Bpd, future = self.solver.joint(
                    prefix, tokens, batch.noise, noise, padding_Bd=batch.padding
                )
            with timer.phase("postprocess"):
                video = self._video(observed, future)
                chunk = self.chunk(admitted[0], y_Bpd[0].cpu().numpy())
        return replace(chunk, timings=timer.total()), video

    def text_keys(self, prompts: Sequence[str]) -> TextKeys:
        """Cross-attention keys and values `[layers, B, H, L_t, h]` of instructions.

        Those of the last instructions are kept.
        """
        rows = [self._text_keys(prompt) for prompt in prompts]
        # Robots of one batch mostly have the same instruction; nothing is copied then.
        same = len(set(prompts)) == 1
        keys = _stacked([row.keys for row in rows], same)
        values = _stacked([row.values for row in rows], same)
        return TextKeys(keys, values)

    def batch(self, admitted: Sequence[AdmittedObservation]) -> Batch:
        """Observations stacked on the device, with all noise that acting takes."""
        shape = self.solver.future_shape() if self.solver.with_future else None
        return self.inputs.batch(admitted, self.device, shape)

    def latents(self, canvas: Tensor) -> Tensor:
        """Reference latents fp32 `[B, C, 1, h, w]` of canvases uint8 `[B, 1, H, W, 3]`."""
        return self.codec.encode(canvas)

    def chunk(self, admitted: AdmittedObservation, y_pd: np.ndarray) -> ActionChunk:
        """The answer to one observation from denoised actions `[p, d]`."""
        actions, flags = self.inputs.finish(admitted, y_pd)
        asked = admitted.observation
        return ActionChunk(
            actions,
            self.id,
            asked.delay,
            {},
            flags,
            run_id=self.contract.run_id,
            request_id=asked.request_id,
        )

    def _observe(self, observations: Sequence[Observation], timer: Timer) -> Observed:
        with torch.inference_mode():
            admitted, batch, reference, text = self._encode(observations, timer)
            with timer.phase("prefix"):
                solver = self._solver_of(batch)
                prefix = solver.observe(batch.state, reference, text, batch.embodiment)
        return Observed(admitted, batch, reference, prefix)

    def _encode(
        self, observations: Sequence[Observation], timer: Timer
    ) -> tuple[tuple[AdmittedObservation, ...], Batch, Tensor, TextKeys]:
        with timer.phase("preprocess"):
            admitted = tuple(self.inputs.admit(o) for o in observations)
            batch = self.batch(admitted)
        with timer.phase("vae"):
            reference = self.latents(batch.canvas)
        with timer.phase("text"):
            text = self.text_keys([x.observation.prompt for x in admitted])
        return admitted, batch, reference, text

    def _solver_of(self, batch: Batch) -> Solver | RecordedSingle:
        # Only the shapes of one robot are recorded.
        return self.solver if self._single is None or len(batch.state) > 1 else self._single

    def _text_keys(self, prompt: str) -> TextKeys:
        with self._texts_lock:
            if prompt in self._texts:
                self._texts.move_to_end(prompt)
                return self._texts[prompt]
        # Outside of the lock: others with a known instruction need not wait. Two threads with
        # the same new one get the same keys.
        with torch.inference_mode():
            keys = self.solver.model.text_keys(self.text.lookup([prompt]).to(self.device))
        with self._texts_lock:
            self._texts[prompt] = keys
            while len(self._texts) > TEXTS_KEPT:
                self._texts.popitem(last=False)
        return keys

    def _future_noise(self, observed: Observed) -> Tensor:
        shape = self.solver.future_shape()
        return self.inputs.future_noise(observed.admitted, shape, self.device)

    def _video(self, observed: Observed, future: Tensor) -> np.ndarray:
        latents = torch.cat([observed.reference, future], dim=2)
        # Of the first observation: futures are imagined for one.
        return self.codec.decode(latents)[0].cpu().numpy()


def _stacked(rows: Sequence[dict[str, Tensor]], same: bool) -> dict[str, Tensor]:
    """Expert -> `[layers, B, H, L_t, h]` of B rows with B = 1; of equal rows a view."""
    first = rows[0]
    if same:
        return {e: keys.expand(-1, len(rows), -1, -1, -1) for e, keys in first.items()}
    stacked: dict[str, Tensor] = {}
    for expert in first:
        stacked[expert] = torch.cat([row[expert] for row in rows], dim=1)
    return stacked

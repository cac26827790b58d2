"""Observation in, action chunk out: the library surface of a trained policy.

Shape legend: B observations, C latent channels, h w latent rows and columns, p actions, d model channels.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gwp.data.canvas import compose
from gwp.data.embodiment import Embodiment
from gwp.data.stats import Normalizer, Stats
from gwp.errors import BundleError
from gwp.model.codecs.text import TextTable, load_text_encoder
from gwp.model.codecs.video import load_video_codec
from gwp.model.sample import act, imagine, joint, observe
from gwp.model.transformer import Context, Tokens
from gwp.model.weights import load_model
from gwp.policy.bundle import Bundle, read_bundle
from gwp.policy.contract import PolicyContract
from gwp.policy.locate import locate
from gwp.policy.safety import apply_limits
from gwp.protocol.messages import ActionChunk, Observation


class _Timer:
    """Milliseconds per phase; waits for the device only at phase borders."""

    def __init__(self, device: torch.device) -> None:
        self.ms: dict[str, float] = {}
        self._device = device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - start) * 1e3


class Policy:
    """A loaded policy. It holds no per-request state, so one instance may serve many robots and threads."""

    def __init__(self, bundle: Bundle, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.bundle = bundle
        self.device = torch.device(device)
        self.contract = PolicyContract.from_bundle(bundle)
        self.settings = bundle.settings
        self.model = load_model(bundle.folder / "model", self.device, dtype)
        self.codec = load_video_codec(bundle.folder / "codec")
        self.text = TextTable(load_text_encoder(bundle.folder / "text"))
        self._normalizers = {n: Normalizer(Stats.from_json(bundle.stats[n]), e) for n, e in bundle.embodiments.items()}
        config = self.model.config
        if config.action_channels != self.settings.model_dim or self.codec.channels != config.in_channels:
            raise BundleError(
                f"{bundle.folder}: model takes {config.action_channels} action and {config.in_channels} latent channels, the bundle "
                f"states {self.settings.model_dim} and its codec gives {self.codec.channels}; export the policy again"
            )

    @classmethod
    def load(cls, uri: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> "Policy":
        """From a path, `s3://bucket/bundle`, or `models:/name@alias`. Every hash, shape and width is checked."""
        place, registered = locate(str(uri))
        bundle = read_bundle(place)
        expected = registered.get("policy_id", bundle.id)
        if expected != bundle.id:
            raise BundleError(f"{uri}: registered as policy {expected}, {place} holds {bundle.id}; promote it again")
        return cls(bundle, device, dtype)

    @property
    def id(self) -> str:
        return self.bundle.id

    def act(self, observation: Observation) -> ActionChunk:
        """The next action chunk of one robot; ObservationError when the observation does not fit."""
        return self.act_batch([observation])[0]

    def act_batch(self, observations: list[Observation]) -> list[ActionChunk]:
        """One chunk per observation, computed together. All are checked first; one that does not fit raises before any work."""
        admitted = [self.contract.admit(o) for o in observations]
        observations, embodiments = [o for o, _ in admitted], [e for _, e in admitted]
        timer = _Timer(self.device)
        start = time.perf_counter()
        with torch.inference_mode():
            context, noise, prefix, committed = self._prepare(observations, embodiments, timer)
            with timer.phase("denoise"):
                y = act(self.model, context, noise, self.settings.steps, self.settings.shift, prefix, committed)
        with timer.phase("postprocess"):
            chunks = [self._finish(o, e, row) for o, e, row in zip(observations, embodiments, y.cpu().numpy(), strict=True)]
        timings = timer.ms | {"total": (time.perf_counter() - start) * 1e3}
        return [ActionChunk(a, self.id, o.delay, timings, flags) for o, (a, flags) in zip(observations, chunks, strict=True)]

    def imagine(self, observation: Observation, chunk: ActionChunk) -> np.ndarray:
        """What the model expects the cameras to see while `chunk` is executed: uint8 `[T, H, W, 3]`, frame 0 is now."""
        return self.imagine_given(observation, chunk.actions)

    def imagine_given(self, observation: Observation, actions_pd: np.ndarray) -> np.ndarray:
        """The same for any actions `[p, d]` in robot units, recorded ones for instance."""
        observation, embodiment = self.contract.admit(observation)
        timer = _Timer(self.device)
        with torch.inference_mode():
            context, _, _, _ = self._prepare([observation], [embodiment], timer)
            actions = self._normalizers[embodiment.name].actions(actions_pd[None], observation.state[None])
            reference = self._encode([observation], [embodiment])
            clean = self._pad(torch.from_numpy(actions))
            noise = self._future_noise([observation], reference)
            future = imagine(self.model, context, clean, noise, self.settings.steps, self.settings.shift)
            return self.codec.decode(torch.cat([reference, future], dim=2))[0].cpu().numpy()

    def act_joint(self, observation: Observation) -> tuple[ActionChunk, np.ndarray]:
        """Actions and video decoded together, every token at every step: what acting alone saves is measured against this."""
        observation, embodiment = self.contract.admit(observation)
        timer = _Timer(self.device)
        start = time.perf_counter()
        with torch.inference_mode():
            with timer.phase("preprocess"):
                state, noise, ids = self._vectors([observation], [embodiment])
            with timer.phase("vae"):
                reference = self._encode([observation], [embodiment])
            with timer.phase("text"):
                text = self.text.lookup([observation.prompt]).to(self.device)
            with timer.phase("denoise"):
                future_noise = self._future_noise([observation], reference)
                tokens = Tokens(state=state, reference=reference)
                y, future = joint(self.model, tokens, text, noise, future_noise, ids, self.settings.steps, self.settings.shift)
            with timer.phase("postprocess"):
                video = self.codec.decode(torch.cat([reference, future], dim=2))[0].cpu().numpy()
                actions, flags = self._finish(observation, embodiment, y[0].cpu().numpy())
        timings = timer.ms | {"total": (time.perf_counter() - start) * 1e3}
        return ActionChunk(actions, self.id, observation.delay, timings, flags), video

    def _prepare(
        self, observations: list[Observation], embodiments: list[Embodiment], timer: _Timer
    ) -> tuple[Context, Tensor, Tensor | None, Tensor | None]:
        """Context, noise `[B, p, d]`, committed actions `[B, p, d]` and which they are bool `[B, p]` (None without any)."""
        with timer.phase("preprocess"):
            state, noise, ids = self._vectors(observations, embodiments)
            prefix, committed = self._committed(observations, embodiments, noise)
        with timer.phase("vae"):
            reference = self._encode(observations, embodiments)
        with timer.phase("text"):
            text = self.text.lookup([o.prompt for o in observations]).to(self.device)
        with timer.phase("prefix"):
            context = observe(self.model, state, reference, text, ids)
        return context, noise, prefix, committed

    def _vectors(self, observations: list[Observation], embodiments: list[Embodiment]) -> tuple[Tensor, Tensor, Tensor]:
        d, p = self.settings.model_dim, self.settings.window.chunk
        states = [self._normalizers[e.name].state(o.state) for o, e in zip(observations, embodiments, strict=True)]
        state = torch.cat([self._pad(torch.from_numpy(s)[None, None]) for s in states])
        noise = torch.stack([torch.randn(p, d, generator=torch.Generator().manual_seed(o.seed or 0)) for o in observations])
        ids = torch.tensor([e.id for e in embodiments])
        return state, noise.to(self.device), ids.to(self.device)

    def _committed(
        self, observations: list[Observation], embodiments: list[Embodiment], noise: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        if not any(o.delay for o in observations):
            return None, None
        prefix, committed = torch.zeros_like(noise), torch.zeros(noise.shape[:2], dtype=torch.bool, device=noise.device)
        for i, (o, e) in enumerate(zip(observations, embodiments, strict=True)):
            if o.delay and o.prefix_actions is not None:
                rows = self._normalizers[e.name].actions(o.prefix_actions[None, : o.delay], o.state[None])
                prefix[i, : o.delay] = self._pad(torch.from_numpy(rows))[0]
                committed[i, : o.delay] = True
        return prefix, committed

    def _encode(self, observations: list[Observation], embodiments: list[Embodiment]) -> Tensor:
        canvases = []
        for o, e in zip(observations, embodiments, strict=True):
            views = {slot: o.images[camera][None] for slot, camera in e.cameras.items()}
            canvases.append(compose(views, self.settings.canvas, None))
        frames = torch.from_numpy(np.stack(canvases)).to(self.device)
        return self.codec.encode(frames)

    def _future_noise(self, observations: list[Observation], reference: Tensor) -> Tensor:
        frames = self.settings.window.frames
        shape = (reference.shape[1], (frames - 1) // self.codec.temporal, *reference.shape[3:])
        # Another stream than the action noise of the same seed.
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed((o.seed or 0) + (1 << 32))) for o in observations]
        return torch.stack(noise).to(self.device)

    def _pad(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x.float(), (0, self.settings.model_dim - x.shape[-1])).to(self.device)

    def _finish(self, observation: Observation, embodiment: Embodiment, y: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        d = len(embodiment.action_names)
        actions = self._normalizers[embodiment.name].inverse_actions(y[None, :, :d], observation.state[None])[0]
        return apply_limits(actions, observation.state, embodiment, observation.delay)

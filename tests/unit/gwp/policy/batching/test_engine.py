"""The engine: robots come and go, each gets the answer it would have got alone."""

import gc
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch

from gwp.errors import ObservationError
from gwp.policy.batching.engine import ClosedError, Engine, ExpiredError
from gwp.policy.batching.schedule import BatchingConfig
from gwp.policy.batching.slots import Slots, fill, step
from gwp.policy.policy import Policy
from gwp.protocol.messages import ActionChunk, Observation
from tests.support.tiny import make_tiny_bundle

LIMIT = 60


@pytest.fixture(scope="module", params=["gwp0", "gwp05"])
def policy(request, tmp_path_factory):
    return Policy.load(make_tiny_bundle(tmp_path_factory.mktemp("bundle"), request.param))


@pytest.fixture
def engine(policy):
    with Engine(policy) as engine:
        yield engine


def observe(seed=0, **changes):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (48, 64, 3), np.uint8)
    state = rng.uniform(-0.5, 0.5, 4).astype(np.float32)
    prompt = f"lift cube {seed % 3}"
    return replace(
        Observation({"observation.images.top": image}, state, prompt, seed=seed), **changes
    )


def committed(seed):
    return observe(
        seed, prefix_actions=np.linspace(-0.5, 0.5, 12, dtype=np.float32).reshape(3, 4), delay=2
    )


@pytest.mark.parametrize("warm", [False, True])
def test_the_engine_answers_as_a_direct_call_does(engine, policy, warm):
    if warm:
        # Knowing its costs, the engine lets others in at other moments.
        engine.warm_up([observe()])
    observations = [committed(s) if s % 4 == 1 else observe(s) for s in range(20)]
    futures = [engine.submit(o) for o in observations]
    for observation, future in zip(observations, futures, strict=True):
        chunk = future.result(LIMIT)
        np.testing.assert_allclose(chunk.actions, policy.act(observation).actions, atol=1e-5)
        assert chunk.valid_from == observation.delay
        assert {
            "preprocess",
            "queue",
            "vae",
            "text",
            "prefix",
            "denoise",
            "postprocess",
            "total",
        } <= set(chunk.timings)
        assert sum(v for k, v in chunk.timings.items() if k != "total") == pytest.approx(
            chunk.timings["total"], abs=0.1
        )


def test_robots_that_come_and_go_at_any_moment_get_their_own_answers(policy):
    """Rows are taken over while their former owners are still being answered."""
    expected = [policy.act(observe(s)).actions for s in range(6)]
    for max_delay in (0.0, 0.7, 5.0):
        with Engine(policy, BatchingConfig(slots=4, group=2, max_delay=max_delay)) as engine:
            engine.warm_up([observe()])

            def robot(seed, engine=engine):
                return all(
                    np.allclose(engine.act(observe(seed)).actions, expected[seed], atol=1e-5)
                    for _ in range(20)
                )

            with ThreadPoolExecutor(6) as pool:
                assert all(pool.map(robot, range(6)))


def test_threads_get_their_own_answers(engine, policy):
    seen = {}

    def robot(seed):
        seen[seed] = engine.act(observe(seed)).actions

    threads = [threading.Thread(target=robot, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(seen) == 12
    for seed, actions in seen.items():
        np.testing.assert_allclose(actions, policy.act(observe(seed)).actions, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    "others", [[observe(1), observe(2), observe(3)], [committed(7), observe(8), committed(9)]]
)
def test_a_row_depends_on_nobody_else_to_the_last_bit(policy, others):
    """Same batch shape, other neighbours at other steps."""

    def outcome(neighbours, advance):
        solver, slots = policy.solver, Slots.empty(policy.solver, 4, policy.text.rows)
        through = solver.acting(slots.prefix)

        def put(row, observation):
            admitted = policy.inputs.admit(observation)
            batch = policy.inputs.batch([admitted], policy.device)
            reference, text = policy.latents(batch.canvas), policy.text_keys([observation.prompt])
            fill(
                slots.rows(row, row + 1),
                batch,
                solver.observe(batch.state, reference, text, batch.embodiment),
            )

        for row, neighbour in enumerate(neighbours):
            put(row + 1, neighbour)
        for _ in range(advance):
            step(solver, slots, through, with_committed=True)
        put(0, observe(0))
        for _ in range(solver.steps):
            step(solver, slots, through, with_committed=True)
        return slots.x[0].clone()

    reference = outcome([observe(4), observe(5), observe(6)], 0)
    assert torch.equal(outcome(others, 2), reference)


def test_a_bad_observation_is_refused_before_it_enters_a_batch(engine, policy):
    good = [engine.submit(observe(s)) for s in range(3)]
    with pytest.raises(ObservationError, match="state"):
        engine.submit(observe(state=np.full(4, np.nan, np.float32)))
    for seed, future in enumerate(good):
        np.testing.assert_allclose(
            future.result(LIMIT).actions, policy.act(observe(seed)).actions, atol=1e-5
        )


def test_an_observation_that_breaks_the_encoder_costs_the_others_nothing(policy, monkeypatch):
    real, marked = policy.codec.encode, policy.inputs.admit(observe(2)).canvas

    def encode(frames):
        if any(np.array_equal(frame, marked) for frame in frames.numpy()):
            raise RuntimeError("no latents for this one")
        return real(frames)

    monkeypatch.setattr(policy.codec, "encode", encode)
    with Engine(policy) as engine:
        with engine._lock:
            futures = [engine.submit(observe(s)) for s in range(4)]
        wait(futures, LIMIT)
        with pytest.raises(RuntimeError, match="this one"):
            futures[2].result()
        monkeypatch.undo()
        for seed in (0, 1, 3):
            np.testing.assert_allclose(
                futures[seed].result().actions, policy.act(observe(seed)).actions, atol=1e-5
            )


def test_a_request_past_its_deadline_is_told_so(engine):
    with engine._lock:
        late = engine.submit(observe(1), deadline_s=0.0)
        fine = engine.submit(observe(2), deadline_s=LIMIT)
    with pytest.raises(ExpiredError, match="deadline"):
        late.result(LIMIT)
    assert isinstance(fine.result(LIMIT), ActionChunk)


def test_a_chunk_that_is_ready_after_the_deadline_is_not_given(policy, monkeypatch):
    """Also when only its last step was too slow."""
    now = [0.0]
    with Engine(policy, clock=lambda: now[0]) as engine:
        real = policy.chunk

        def late(*args):
            now[0] += 10
            return real(*args)

        monkeypatch.setattr(policy, "chunk", late)
        with pytest.raises(ExpiredError, match="deadline passed"):
            engine.act(observe(), 5)
        assert isinstance(engine.act(observe(), 15), ActionChunk)
        assert engine.load == (0, 0)


def test_cancelling_frees_the_place(policy):
    with Engine(policy, BatchingConfig(slots=1)) as engine:
        with engine._lock:
            futures = [engine.submit(observe(s)) for s in range(3)]
            assert futures[0].cancel()
            assert futures[1].cancel()
        assert isinstance(futures[2].result(LIMIT), ActionChunk)
        with pytest.raises(CancelledError):
            futures[0].result(LIMIT)
        assert engine._jobs == {}


def test_closing_answers_whoever_still_waits(policy):
    engine = Engine(policy, BatchingConfig(slots=1))
    futures = [engine.submit(observe(s)) for s in range(10)]
    engine.close()
    wait(futures, LIMIT)
    for future in futures:
        assert future.done()
        if future.exception():
            assert isinstance(future.exception(), ClosedError)
    with pytest.raises(ClosedError):
        engine.submit(observe())


def test_a_failing_device_fails_its_batch_and_is_counted(policy, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("device lost")

    with Engine(policy) as engine:
        monkeypatch.setattr(policy.solver, "velocity", broken)
        for expected in (1, 2):
            with pytest.raises(RuntimeError, match="device lost"):
                engine.submit(observe()).result(LIMIT)
            assert engine.failures == expected
        monkeypatch.undo()
        assert isinstance(engine.act(observe()), ActionChunk)
        assert engine.failures == 0


def test_requests_leave_nothing_behind(policy):
    with Engine(policy, BatchingConfig(slots=4)) as engine:
        engine.warm_up([observe()])
        for _ in range(50):
            with engine._lock:
                futures = [engine.submit(observe(s)) for s in range(4)]
            wait(futures, LIMIT)
        assert engine._jobs == {}
        assert engine.load == (0, 0)


@torch.inference_mode()
def test_thousands_of_ticks_allocate_nothing_that_stays(tmp_path):
    policy = Policy.load(make_tiny_bundle(tmp_path, num_layers=1))
    slots = Slots.empty(policy.solver, 1, policy.text.rows)
    through = policy.solver.acting(slots.prefix)
    process = psutil.Process()

    def ticks(count):
        for _ in range(count):
            step(policy.solver, slots, through, with_committed=True)
        gc.collect()
        return process.memory_info().rss, sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    ticks(1000)
    sizes, tensors = zip(*(ticks(1000) for _ in range(6)), strict=True)
    assert len(set(tensors)) == 1
    # What stays of every tick makes all stretches grow; the allocator's own pages only some.
    assert min(b - a for a, b in pairwise(sizes)) < 1000 * 400


def test_warming_up_learns_every_batch_shape(policy):
    with Engine(policy, BatchingConfig(slots=8, group=4)) as engine:
        engine.warm_up([observe()])
        assert set(engine._schedule.costs.prefix) == {1, 2, 4}
        assert set(engine._schedule.costs.step) == {1, 2, 4, 8}


def test_only_the_engines_thread_keeps_workers(tmp_path):
    """Two sets of OpenMP workers on the same cores halve its speed, so loading, warming up and
    submitting must leave none behind.
    """
    program = f"""
import os, numpy as np, torch
from gwp.policy.batching.engine import Engine
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation
from gwp.threads import apart
torch.set_num_threads(2)
before = len(os.listdir("/proc/self/task"))
policy = apart(lambda: Policy.load({str(make_tiny_bundle(tmp_path))!r}))
image = np.zeros((48, 64, 3), np.uint8)
seen = Observation({{"observation.images.top": image}}, np.zeros(4, np.float32), "lift", seed=1)
with Engine(policy) as engine:
    engine.warm_up([seen])
    engine.act(seen)
    print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    # The engine's thread, and at most one worker beside it.
    assert int(done.stdout) <= 2

"""The engine alone, one robot after the other. A program of its own:

python -m pipelines.bench.fleet.bare BUNDLE THREADS > SECONDS
"""

import json
import sys
import time

import numpy as np
import torch

from gwp.policy.batching.engine import Engine
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation
from gwp.threads import apart
from serve.warmup import observation_for

_WARM, _TIMES = 10, 100


def run(bundle: str) -> list[float]:
    """Seconds of each request."""
    policy = apart(lambda: Policy.load(bundle))
    (robot,) = policy.contract.embodiments.values()
    (camera,) = robot.cameras.values()
    picture = np.random.default_rng(0).integers(0, 256, (240, 278, 3), np.uint8)
    state = np.zeros(len(robot.state_names), np.float32)
    seen = Observation({camera: picture}, state, "put it there", seed=0)
    with Engine(policy) as engine:
        engine.warm_up([observation_for(robot)])
        for _ in range(_WARM):
            engine.act(seen)
        found = []
        for _ in range(_TIMES):
            begin = time.perf_counter()
            engine.act(seen)
            found.append(time.perf_counter() - begin)
    return found


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    json.dump(run(sys.argv[1]), sys.stdout)

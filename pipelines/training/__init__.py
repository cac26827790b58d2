"""A stage as a run: its job, run folder, stream, loop, engine, checkpoints and weights."""

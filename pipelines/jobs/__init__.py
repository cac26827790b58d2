"""A training job as it is written, and what it resolves to before anything runs."""

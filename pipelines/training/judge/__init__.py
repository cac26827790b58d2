"""Checkpoints judged by a process of its own, beside the steps."""

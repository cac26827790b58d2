"""Checkpoints: what makes one whole, and how it comes to storage."""

"""TFDS/RLDS sets: episodes in TFRecord files."""

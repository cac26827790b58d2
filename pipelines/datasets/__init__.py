"""What `gwp data` does with a set: inspect it, compute its statistics, cache its latents."""

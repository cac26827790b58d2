"""The cache of latents and texts of a job: what it lacks, and who writes it."""

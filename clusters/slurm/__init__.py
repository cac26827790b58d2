"""A cluster document as batch scripts for Slurm: Ray lives as long as an allocation."""

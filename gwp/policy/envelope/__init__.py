"""The safety envelope: what happens to a chunk before it leaves for a robot."""

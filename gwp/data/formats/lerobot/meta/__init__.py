"""What a LeRobot set says of itself under `meta/`: its description, episodes, tasks and splits."""

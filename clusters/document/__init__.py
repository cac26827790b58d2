"""What a cluster consists of, in one file: pools of nodes, image, storage, secrets by name."""

"""What all doors share: who may come in, turns, deadlines, and the way to a chunk."""

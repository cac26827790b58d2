"""What a robot's numbers mean: the parts of its action and state, and the kinds of each."""

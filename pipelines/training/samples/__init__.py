"""What workers train on: the plan dealt out in shares, decoded, streamed and encoded."""

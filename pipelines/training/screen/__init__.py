"""What the terminal shows of a stage that is being trained."""

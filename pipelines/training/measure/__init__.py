"""What a run is judged by: where the time of its steps goes, how fast they are, and losses by group."""

"""What a run and an endpoint tell while they live: the table of names, and what counts them."""

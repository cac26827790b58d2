"""What a fleet gets from the endpoint: `gwp bench fleet`."""

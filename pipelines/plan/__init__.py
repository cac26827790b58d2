"""What a stage or an endpoint needs, before anything starts: arithmetic on its file alone."""

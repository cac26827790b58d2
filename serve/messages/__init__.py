"""Maps of the wire to observations, and chunks to maps."""

"""Work as jobs of a Ray cluster: reached, looked at, started once, followed, stopped."""

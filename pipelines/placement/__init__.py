"""Whether a stage or an endpoint fits a cluster, before anything starts."""

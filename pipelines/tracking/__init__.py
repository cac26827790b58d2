"""MLflow: runs, and the registry of policies."""

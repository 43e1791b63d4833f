"""MLflow: runs and their records, the outbox for a server that is down, the registry, the packaged model."""

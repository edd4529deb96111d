"""What an operator sees of a sidecar: HTTP endpoints, metrics, status and configuration reload."""

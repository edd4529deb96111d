"""Routing state: the model that the migrator publishes, and how a sidecar follows, acknowledges and holds
it."""

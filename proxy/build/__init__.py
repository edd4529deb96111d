"""The hot path as C: how it is compiled, what of it runs compiled, and that no stale build ever runs unnoticed."""

"""The asyncio shell: listeners, TLS, limits, flow control, shutdown. The only place that moves clients' bytes."""

"""Framing and message codecs of the PostgreSQL frontend/backend protocol. Knows bytes, not what they mean."""

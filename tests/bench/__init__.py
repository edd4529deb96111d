"""Measurements: they print figures and assert only that nothing failed."""

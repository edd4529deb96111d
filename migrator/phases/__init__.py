"""What leads from one phase to the next: one module each. ``migrator.engine`` calls them in order."""

"""The control schema ``dualwire`` in the migrated database: its tables, the lock, publication, acknowledgements."""

"""dualwire's migrator: drives a schema migration through its phases; all its state is in the migrated database."""

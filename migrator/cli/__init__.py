"""The command ``dualwire``: parsing, printing, exit codes. What commands do stands in ``migrator.engine``."""

"""`dualwire demo`: a shop under live traffic, migrated while it runs, every row checked against an
independent ledger.
"""

"""What runs inside a suite's own environment: copied there by the suite's ``lay_out``, never imported from here.

These files know what the suite installs, and nothing of this project.
"""

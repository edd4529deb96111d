"""Test suites that others wrote, run once against PostgreSQL itself and once through a sidecar.

`sources` fetches a suite and makes an environment for it, `servers` starts PostgreSQL and the sidecar, `results` reads
what the suite said and compares the two passes, `allowed` reads the reviewed list of differences, `judge` puts them
together. A suite itself is one module of this package with a `Suite` that says what to fetch and which command runs it.
"""

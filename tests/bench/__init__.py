"""Measurements: they print figures and assert only that nothing failed.

All of them compare ways to one server in one run, because machines differ and are noisy: rounds are interleaved,
figures are medians with the smallest and the largest beside them, and ratios are taken within a round. PgBouncer and
Pgpool-II are taken from PATH; what is not installed is left out, and said so.

Environment: ``BENCH_SECONDS`` (of one pgbench run, default 4), ``BENCH_ROUNDS`` (default 3), ``BENCH_CLIENTS``
(default "8 64"), ``BENCH_IDLE`` (idle clients, default "1000 10000").
"""

"""The classic faults of PostgreSQL proxies, one file each: every one must fail where its fix is reverted."""

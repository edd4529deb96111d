"""dualwire's sidecar: a PostgreSQL wire-protocol proxy that serves two versions of a schema at once.

The layers, lowest first, each importing only what stands below it: ``wire``, ``sql``, ``rewrite``, ``session``,
``backend``, ``control``, ``server``, ``admin``. The first four know no sockets and no event loop.
"""

from proxy.build.state import refuse_stale

refuse_stale()

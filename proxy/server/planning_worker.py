"""A process that plans large texts: requests come on standard input, plans go to standard output.

A parse of its own would not do: the tree of a text is built and dropped by calls that hold the interpreter's lock for
hundreds of milliseconds, and takes some 200 bytes for each byte of the text. Here both are nobody else's, and once a
text has taken much memory the process ends and gives it back. It also ends with its standard input.

Contract: only the standard library, ``proxy.rewrite`` and below; every message is a length and a pickle of plain
values, and comes from, or goes to, the sidecar that started it (``proxy.server.planning``).
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import resource
import signal
import sys
from typing import Any, BinaryIO, Final

from proxy.rewrite.parcel import pack
from proxy.rewrite.planner import Planner

LENGTH: Final = 8
MAX_MEMORY: Final = 2 << 30
"""Bytes of address space: beyond that a text counts as one that cannot be looked into."""
KEPT_MEMORY: Final = 192 << 10
"""Kilobytes: a process that has needed more ends after its answer."""
MAX_PLANNERS: Final = 8


def read(stream: BinaryIO) -> Any:
    """The next message; None at the end."""
    head = stream.read(LENGTH)
    if len(head) < LENGTH:
        return None
    size = int.from_bytes(head, "big")
    body = stream.read(size)
    return pickle.loads(body) if len(body) == size else None


def message(value: Any) -> bytes:
    """A message with that value."""
    body = pickle.dumps(value, protocol=5)
    return len(body).to_bytes(LENGTH, "big") + body


def main() -> None:
    """Answer until there are no more questions."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal; the sidecar decides when to stop
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    with contextlib.suppress(OSError):
        os.nice(5)
    gc.disable()
    planners: dict[Any, Planner] = {}
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (request := read(source)) is not None:
        key, tables, text, search_path, temporary = request
        if tables is not None:
            if len(planners) >= MAX_PLANNERS:
                planners.clear()
            _, side, dual_write = key
            planners[key] = Planner(tables, side, dual_write)
        planner = planners.get(key)
        answer = None if planner is None else pack(planner.plan(text, search_path, temporary), text)
        last = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > KEPT_MEMORY
        sink.write(message((answer, last)))
        sink.flush()
        if last:
            return


if __name__ == "__main__":
    main()

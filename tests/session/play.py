"""A stage for sessions without sockets: what the client and the servers say goes in, what they hear is compared.

The rules that rewriting works on are real ones (``TableModel``); only the sockets are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.control.hub import RoutingHub
from proxy.control.routing import Routing
from proxy.rewrite.model import Column, Direction, LogicalColumn, Mirror, TableModel
from proxy.rewrite.plan import Plan, Refusal
from proxy.session.context import Books, Context
from proxy.session.core import Session
from proxy.session.names import StatementNames
from proxy.session.ports import Target
from proxy.stats import Stats
from proxy.wire import messages as m

READY = m.ready_for_query(b"I")
IN_TRANSACTION = m.ready_for_query(b"T")
DONE = m.frame(m.COMMAND_COMPLETE, b"OK\0")
PARSED, BOUND, CLOSED = (m.frame(kind, b"") for kind in b"123")
ERROR = m.error_response("42601", "boom")

_ID = Column("id", "integer", "integer", not_null=True)
_STATUS = Column("status", "integer", "integer")
_STATE = Column("_dualwire_new_state", "text", "text")
_MARK = Column("_dualwire_mark", "smallint", "smallint")

ORDERS = TableModel(
    schema="public",
    name="orders",
    oid=16384,
    columns=(_ID, _STATUS, _STATE, _MARK),
    primary_key=("id",),
    old=(LogicalColumn("id", "id"), LogicalColumn("status", "status")),
    new=(LogicalColumn("id", "id"), LogicalColumn("state", "_dualwire_new_state")),
    up=Direction((Mirror("_dualwire_new_state", "dualwire.up_1_1", ("status",)),)),
    down=Direction((Mirror("status", "dualwire.down_1_1", ("_dualwire_new_state",)),)),
    mark="_dualwire_mark",
)


def routing(epoch: int = 1, **changes: Any) -> Routing:
    """A routing state with a migration of ``orders`` under way, both versions served."""
    values: dict[str, Any] = {
        "epoch": epoch,
        "epoch_id": "e",
        "revision": epoch,
        "migration": "m1",
        "phase": "verified",
        "new": "m1",
        "serves_new": True,
        "dual_write": True,
        "tables": (ORDERS,),
        "versions": ("base", "m1"),
    }
    return Routing(**{**values, **changes})


class Yes:
    """A verdict: the rewritten text is good."""

    mirrored = True

    error = b""
    refusal: Refusal | None = None

    def __init__(self, oids: tuple[int, ...] = ()) -> None:
        self.oids = oids


class No(Yes):
    """A verdict: leave it to the guard."""

    mirrored = False


class Error(No):
    """A verdict: this is what PostgreSQL says."""

    def __init__(self, error: bytes) -> None:
        super().__init__()
        self.error = error


class Refused(No):
    """A verdict: it cannot be sent."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self.refusal = refusal


class Prober:
    """Answers at once with what the test wants, or keeps the question."""

    def __init__(self) -> None:
        self.verdict: Any = Yes()
        self.answers: dict[Any, Any] = {}
        self.asked: list[tuple[Any, Plan, Callable[[Any], None]]] = []
        self.slow = False

    def known(self, key: tuple[Any, ...], plan: Plan) -> Any:
        return self.answers.get(key)

    def probe(
        self, key: tuple[Any, ...], plan: Plan, oids: tuple[int, ...], done: Callable[[Any], None]
    ) -> None:
        self.asked.append((key, plan, done))
        if not self.slow:
            self.answer()

    def answer(self) -> None:
        """Give the verdict on the oldest open question."""
        key, _, done = self.asked.pop(0)
        self.answers[key] = self.verdict
        done(self.verdict)


class Reads:
    """One replica, covering what the test says."""

    def __init__(self) -> None:
        self.sent = 0
        self.enabled = False
        self.covered = 0
        self.requests = 0

    def request(self) -> None:
        self.requests += 1

    def choose(self, seen: int, current: int | None) -> tuple[int | None, str]:
        return (0, "read_only") if self.covered > seen else (None, "read_your_writes")

    def servable(self, plan: Plan, search_path: tuple[str, ...], user: str) -> bool | None:
        return True


class Play:
    """One session on the stage; also its port."""

    def __init__(
        self, state: Routing | None = None, version: str = "base", names: StatementNames | None = None
    ) -> None:
        self.hub = RoutingHub()
        if state is not None:
            self.hub.publish(state)
        self.prober = Prober()
        self.reads = Reads()
        self.stats = Stats()
        self.ended = ""
        self._to_client: list[bytes] = []
        self._to_server: list[tuple[Target, bytes]] = []
        context = Context(
            hub=self.hub,
            reads=self.reads,
            prober=self.prober,
            stats=self.stats,
            clock=lambda: 0.0,
            books=Books(self.stats),
            names=names,
        )
        self.session = Session(context, self, number=1, user="ann", version=version, parameters={})

    # -- the port

    def to_client(self, data: bytes) -> None:
        self._to_client.append(data)

    def to_server(self, target: Target, data: bytes) -> None:
        self._to_server.append((target, data))

    def replica_ready(self, index: int) -> bool:
        return True

    def lease(self) -> bool:
        return True

    def release(self, dirty: bool) -> None:
        pass

    def release_replica(self) -> None:
        pass

    def reported(self, parameters: dict[str, str]) -> None:
        pass

    def make_way(self, database: str) -> None:
        pass

    def finish(self) -> None:
        self.ended = "finish"

    def fail(self, sqlstate: str, message: str, hint: str = "") -> None:
        self.ended = sqlstate

    # -- the play

    def client(self, *frames: bytes) -> list[bytes]:
        """The client says this; what the primary hears, frame by frame."""
        self.session.feed(b"".join(frames))
        return self.heard(Target.PRIMARY)

    def server(self, *frames: bytes, target: Target = Target.PRIMARY) -> bytes:
        """A server says this; what the client hears."""
        self.session.feed_server(target, b"".join(frames))
        said, self._to_client = b"".join(self._to_client), []
        return said

    def heard(self, target: Target) -> list[bytes]:
        """What a server has heard since the last call."""
        mine = b"".join(data for where, data in self._to_server if where is target)
        self._to_server = [item for item in self._to_server if item[0] is not target]
        return split(mine)


def split(data: bytes) -> list[bytes]:
    """The frames of a byte string."""
    frames, at = [], 0
    while at < len(data):
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        frames.append(data[at:end])
        at = end
    return frames


def query(text: str) -> bytes:
    """A simple query."""
    return m.query(text.encode())


def parse(text: str, name: str = "") -> bytes:
    """A Parse message."""
    return m.parse(name.encode(), text.encode(), ())


def bind(name: str = "") -> bytes:
    """A Bind without parameters."""
    return m.frame(m.BIND, b"\0" + name.encode() + b"\0\0\0\0\0\0\0")


EXECUTE = m.frame(m.EXECUTE, b"\0\0\0\0\0")
SYNC = m.SYNC_FRAME


def text_of(frame: bytes) -> str:
    """The SQL of a Query or Parse frame."""
    return (m.read_query(frame) if frame[0] == m.QUERY else m.read_parse(frame)[1]).decode()

"""The console's protocol without a socket: messages of a client in, replies out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from struct import pack

import pytest

from proxy.admin.console import INT8, Column, Console, Done, Row
from proxy.admin.console_commands import ConsoleError, Operate, Show, Transaction, read
from proxy.wire import messages as m
from proxy.wire.framing import Framer
from proxy.wire.messages import ProtocolViolation

COLUMNS = (Column("name"), Column("count", INT8))
ROWS: list[Row] = [("one", 1), ("two", -2), (None, None)]


@dataclass
class Desk:
    """One table, and operations that end when the test says so."""

    asked: list[Operate] = field(default_factory=list)
    ends: list[Callable[[Done | ConsoleError], None]] = field(default_factory=list)

    def columns(self, table: str) -> tuple[Column, ...]:
        return COLUMNS

    def rows(self, table: str) -> Iterable[Row]:
        return ROWS

    def operate(self, command: Operate, done: Callable[[Done | ConsoleError], None]) -> None:
        self.asked.append(command)
        self.ends.append(done)


class Client:
    """A client of a console: sends, and reads replies as ``(type, body)``."""

    def __init__(self, *, admin: bool = True) -> None:
        self.desk = Desk()
        self._written = bytearray()
        self.console = Console(self.desk, self._written.extend, user="jane", admin=admin)

    def say(self, *messages: bytes) -> list[str]:
        """Sends messages and gives the types of the replies."""
        return [kind for kind, _ in self.send(*messages)]

    def send(self, *messages: bytes) -> list[tuple[str, bytes]]:
        self.console.feed(b"".join(messages))
        return self.replies()

    def replies(self) -> list[tuple[str, bytes]]:
        data = bytes(self._written)
        self._written.clear()
        return [(chr(frame[0]), frame[5:]) for frame in Framer(allowed=None).feed(data)]


def _bind(portal: bytes = b"", statement: bytes = b"", formats: tuple[int, ...] = ()) -> bytes:
    body = pack(">HHH", 0, 0, len(formats)) + b"".join(pack(">H", code) for code in formats)
    return m.frame(m.BIND, portal + b"\0" + statement + b"\0" + body)


def _execute(portal: bytes = b"", limit: int = 0) -> bytes:
    return m.frame(m.EXECUTE, portal + b"\0" + pack(">i", limit))


def _error(replies: list[tuple[str, bytes]]) -> dict[str, bytes]:
    (body,) = [body for kind, body in replies if kind == "E"]
    return m.error_fields(m.frame(m.ERROR_RESPONSE, body))


def test_show_gives_rows() -> None:
    client = Client()
    assert client.say(m.query(b"show Pools;")) == ["T", "D", "D", "D", "C", "Z"]


def test_several_commands_in_one_text_are_carried_out_in_order() -> None:
    client = Client()
    assert client.say(m.query(b"SHOW VERSION; SET a TO 'b;c'; RELOAD; SHOW POOLS")) == [
        *("T", "D", "D", "D", "C"),
        "C",
    ]
    client.desk.ends.pop()(Done("RELOAD", ("careful",)))
    assert [kind for kind, _ in client.replies()] == ["N", "C", "T", "D", "D", "D", "C", "Z"]


def test_an_error_ends_the_text() -> None:
    client = Client()
    assert client.say(m.query(b"SHOW POOLS; SELECT 2; SHOW POOLS")) == ["E", "Z"]
    assert client.say(m.query(b"KILL; SHOW POOLS")) == []
    client.desk.ends.pop()(ConsoleError("3D000", "no"))
    assert [kind for kind, _ in client.replies()] == ["E", "Z"]


def test_an_empty_text_is_an_empty_query() -> None:
    client = Client()
    for text in (b"", b" ; ;", b"-- nothing\n/* at all */"):
        assert client.say(m.query(text)) == ["I", "Z"]


def test_what_comes_during_a_command_waits_for_its_end() -> None:
    client = Client()
    assert client.say(m.query(b"PAUSE"), m.query(b"SHOW POOLS"), m.query(b"RESUME shop")) == []
    assert client.console.busy
    client.desk.ends.pop()(Done("PAUSE"))
    assert [kind for kind, _ in client.replies()] == ["C", "Z", "T", "D", "D", "D", "C", "Z"]
    assert client.desk.asked == [Operate("PAUSE"), Operate("RESUME", "shop")]


def test_the_extended_protocol_serves_a_driver() -> None:
    client = Client()
    replies = client.say(m.parse(b"s", b"SHOW POOLS", ()), m.describe_statement(b"s"), m.FLUSH_FRAME)
    assert replies == ["1", "t", "T"]
    assert client.say(_bind(statement=b"s"), _execute(), m.SYNC_FRAME) == ["2", "D", "D", "D", "C", "Z"]
    assert client.say(m.close_statement(b"s"), m.SYNC_FRAME) == ["3", "Z"]
    assert _error(client.send(_bind(statement=b"s"), m.SYNC_FRAME))["C"] == b"26000"


def test_values_are_binary_where_that_was_asked_for() -> None:
    client = Client()
    replies = client.send(m.parse(b"", b"SHOW POOLS", ()), _bind(formats=(1,)), _execute(), m.SYNC_FRAME)
    rows = [body for kind, body in replies if kind == "D"]
    assert rows[1] == pack(">Hi", 2, 3) + b"two" + pack(">iq", 8, -2)
    assert rows[2] == pack(">Hii", 2, -1, -1)
    replies = client.send(_bind(formats=(0, 1)), m.frame(m.DESCRIBE, b"P\0"), m.SYNC_FRAME)
    (described,) = [body for kind, body in replies if kind == "T"]
    assert [described[23:25], described[-2:]] == [pack(">H", 0), pack(">H", 1)]
    assert _error(client.send(_bind(formats=(2,)), m.SYNC_FRAME))["C"] == b"08P01"
    assert _error(client.send(_bind(formats=(0, 0, 0)), m.SYNC_FRAME))["C"] == b"08P01"


def test_a_portal_is_fetched_in_pages() -> None:
    client = Client()
    begin = (m.query(b"BEGIN"), m.parse(b"", b"SHOW POOLS", ()), _bind(b"p"))
    assert client.say(*begin, _execute(b"p", 2), m.SYNC_FRAME) == ["C", "Z", "1", "2", "D", "D", "s", "Z"]
    assert client.say(_execute(b"p", 2), m.SYNC_FRAME) == ["D", "C", "Z"]
    assert client.say(m.query(b"COMMIT")) == ["C", "Z"]
    assert client.say(m.SYNC_FRAME) == ["Z"]
    assert _error(client.send(_execute(b"p"), m.SYNC_FRAME))["C"] == b"34000"


def test_after_an_error_everything_is_skipped_to_the_next_sync() -> None:
    client = Client()
    batch = (m.parse(b"", b"SHOW nothing", ()), _bind(), _execute(), m.SYNC_FRAME)
    assert client.say(*batch, m.parse(b"", b"", ()), _bind(), _execute(), m.SYNC_FRAME) == [
        *("E", "Z"),
        *("1", "2", "I", "Z"),
    ]


def test_a_transaction_that_failed_says_so() -> None:
    client = Client()
    statuses = []
    for text in (b"BEGIN", b"nonsense", b"SHOW POOLS", b"COMMIT", b"SHOW POOLS"):
        replies = client.send(m.query(text))
        statuses.append((replies[0][0], replies[-1][1]))
    assert statuses == [("C", b"T"), ("E", b"E"), ("E", b"E"), ("C", b"I"), ("T", b"I")]


def test_parameters_are_refused_with_a_hint() -> None:
    client = Client()
    bind = m.frame(m.BIND, b"\0\0" + pack(">HHi", 0, 1, 1) + b"x" + pack(">H", 0))
    error = _error(client.send(m.parse(b"", b"SHOW POOLS", ()), bind, m.SYNC_FRAME))
    assert error["C"] == b"08P01"
    assert b"parameters" in error["H"]


def test_who_may_only_look_may_only_look() -> None:
    client = Client(admin=False)
    assert client.say(m.query(b"SHOW POOLS"))[-1] == "Z"
    assert client.say(m.query(b"SET application_name = 'x'")) == ["C", "Z"]
    for text in (b"PAUSE", b"RESUME", b"RELOAD", b"KILL", b"KILL_CLIENT 1", b"RECONNECT", b"SHUTDOWN"):
        assert _error(client.send(m.query(text)))["C"] == b"42501"
    assert client.desk.asked == []


@pytest.mark.parametrize(
    ("text", "sqlstate"),
    [
        ("SELECT * FROM pg_class", "0A000"),
        ("SHOW sausages", "42704"),
        ("EAT sausages", "42601"),
        ("PAUSE one two", "42601"),
        ("KILL_CLIENT", "42601"),
        ("SHOW 'pools", "42601"),
        ("SHOW POOLS;" * 65, "54001"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, sqlstate: str) -> None:
    with pytest.raises(ConsoleError) as refused:
        read(text)
    assert refused.value.sqlstate == sqlstate


def test_names_are_read_as_sql_reads_them() -> None:
    assert read('PAUSE Shop; pause "Sh""op"') == [Operate("PAUSE", "shop"), Operate("PAUSE", 'Sh"op')]
    assert read("Start Transaction ; show/* what? */clients") == [Transaction("BEGIN"), Show("clients")]


def test_a_password_message_after_the_login_breaks_the_protocol() -> None:
    with pytest.raises(ProtocolViolation):
        Client().say(m.frame(m.PASSWORD, b"x\0"))


def test_a_function_call_is_refused_and_the_connection_goes_on() -> None:
    client = Client()
    assert client.say(m.frame(m.FUNCTION_CALL, b"\0\0\0\1")) == ["E", "Z"]
    assert client.say(m.COPY_DONE.to_bytes() + b"\0\0\0\4", m.query(b"")) == ["I", "Z"]


def test_messages_split_anywhere_give_the_same_replies() -> None:
    script = b"".join(
        (
            m.query(b"SHOW POOLS; SET a = 1"),
            m.parse(b"s", b"SHOW VERSION", ()),
            m.describe_statement(b"s"),
            _bind(statement=b"s", formats=(1,)),
            _execute(limit=1),
            m.SYNC_FRAME,
            m.query(b"BEGIN; x"),
        )
    )
    whole = Client().send(script)
    for cut in range(1, len(script)):
        client = Client()
        assert client.send(script[:cut]) + client.send(script[cut:]) == whole

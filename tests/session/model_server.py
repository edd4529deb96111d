"""A model of a PostgreSQL backend for sessions without sockets: it answers whatever it hears, in protocol order.

It knows a handful of statements, recognised by how they begin, and everything of the protocol that decides *which*
answers come: the skipping after an error, the transaction status, names of statements and portals, paging, and how
COPY swallows Sync. Every answer carries the number of the statement that it belongs to (a ``/*7*/`` in its text, which
survives rewriting), so that an answer in the wrong place is seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.wire import messages as m

_MARK = re.compile(rb"/\*(\d+)\*/")
_ROWS = re.compile(rb"generate_series\(1, (\d+)\)")
_COPY_FORMAT = b"\0\0\0"


@dataclass
class Portal:
    """A bound statement and the rows of it that were not fetched yet."""

    text: bytes
    rows: list[bytes] | None = None


class Failed(Exception):
    """The request ends in an error."""

    def __init__(self, sqlstate: str, text: bytes = b"") -> None:
        super().__init__(sqlstate)
        self.frame = m.error_response(sqlstate, f"failed {mark_of(text)}")


def mark_of(text: bytes) -> str:
    """The statement's number."""
    found = _MARK.search(text)
    return found[1].decode() if found else "-"


class ModelServer:
    """One backend: :meth:`hear` whole messages; what it says gathers in ``said``."""

    def __init__(self) -> None:
        self.said = bytearray()
        self.status = b"I"
        self.executed: list[str] = []
        """The numbers of the statements that ran, in order."""
        self.asleep = False
        """Runs a statement that ends only with a cancel."""
        self._heard: list[bytes] = []
        self._statements: dict[bytes, bytes] = {}
        self._portals: dict[bytes, Portal] = {}
        self._skipping = False
        self._copying = ""
        self._copy_text = b""
        self._copied = 0

    # -- what comes ----------------------------------------------------------------------------------------------

    def hear(self, frame: bytes) -> None:
        """One message from the client."""
        self._heard.append(frame)
        self._go_on()

    def cancel(self) -> None:
        """A cancel request: does nothing unless a statement runs."""
        if self.asleep:
            self.asleep = False
            self._fail(Failed("57014"))
            if not self._skipping:
                self._ready()
            self._go_on()

    def _go_on(self) -> None:
        while self._heard and not self.asleep:
            self._on(self._heard.pop(0))

    def _on(self, frame: bytes) -> None:
        kind = frame[0]
        if self._copying:
            self._on_copy(kind, frame)
        elif self._skipping and kind != m.SYNC:
            return
        elif kind == m.SYNC:
            self._skipping = False
            self._end_implicit()
            self._ready()
        elif kind == m.QUERY:
            self._query(m.read_query(frame))
        elif kind not in (m.FLUSH, m.COPY_DATA, m.COPY_DONE, m.COPY_FAIL):
            try:
                self._extended(kind, frame)
            except Failed as failed:
                self._fail(failed)
                self._skipping = True

    def _say(self, kind: int, body: bytes = b"") -> None:
        self.said += m.frame(kind, body)

    def _ready(self) -> None:
        self.said += m.ready_for_query(self.status)

    def _fail(self, failed: Failed) -> None:
        self.said += failed.frame
        self.status = b"I" if self.status == b"I" else b"E"
        if self.status == b"I":
            self._portals.clear()

    def _end_implicit(self) -> None:
        if self.status == b"I":
            self._portals.clear()

    # -- simple ----------------------------------------------------------------------------------------------------

    def _query(self, text: bytes) -> None:
        self._statements.pop(b"", None)
        try:
            for part in text.split(b";"):
                if not part.strip():
                    self._say(m.EMPTY_QUERY)
                elif self._begin_copy(part, "simple"):
                    return
                else:
                    portal = self._start(part)
                    if self.asleep:
                        return
                    if portal.rows:
                        self._say(m.ROW_DESCRIPTION, b"\0\0")
                    self._finish(portal, 0)
        except Failed as failed:
            self._fail(failed)
        self._end_implicit()
        self._ready()

    # -- extended --------------------------------------------------------------------------------------------------

    def _extended(self, kind: int, frame: bytes) -> None:
        if kind == m.PARSE:
            name, text, _ = m.read_parse(frame)
            self._parse(name, text)
        elif kind == m.BIND:
            portal, name = m.read_bind_names(frame)
            if name not in self._statements:
                raise Failed("26000")
            self._check(self._statements[name])
            self._portals[portal] = Portal(self._statements[name])
            self._say(m.BIND_COMPLETE)
        elif kind == m.EXECUTE:
            name, after = m.cstring(frame, m.HEADER)
            self._execute(name, int.from_bytes(frame[after : after + 4], "big"))
        elif kind == m.DESCRIBE:
            self._describe(*m.read_target(frame))
        elif kind == m.CLOSE:
            target, name = m.read_target(frame)
            (self._statements if target == ord("S") else self._portals).pop(name, None)
            self._say(m.CLOSE_COMPLETE)

    def _parse(self, name: bytes, text: bytes) -> None:
        if not name:
            self._statements.pop(b"", None)
        self._check(text)
        if b"SELEC " in text or b"refused_by_dualwire" in text:
            raise Failed("42601", text)
        if name in self._statements:
            raise Failed("42P05", text)
        self._statements[name] = text
        self._say(m.PARSE_COMPLETE)

    def _describe(self, target: int, name: bytes) -> None:
        known = self._statements if target == ord("S") else self._portals
        if name not in known:
            raise Failed("26000" if target == ord("S") else "34000")
        if target == ord("S"):
            # PostgreSQL asks that only of statements with a result; a shared server that does not have the statement
            # asks it of all (docs/compatibility.md).
            self._check(self._statements[name])
            self._say(m.PARAMETER_DESCRIPTION, b"\0\0")
            text = self._statements[name]
        else:
            text = self._portals[name].text
        if b"SELECT" in text:
            self._say(m.ROW_DESCRIPTION, b"\0\0")
        else:
            self._say(m.NO_DATA)

    def _execute(self, name: bytes, limit: int) -> None:
        portal = self._portals.get(name)
        if portal is None:
            raise Failed("34000")
        if portal.rows is None:
            if self._begin_copy(portal.text, "extended"):
                return
            started = self._start(portal.text)
            if self.asleep:
                self._skipping = True
                return
            portal.rows = started.rows
        self._finish(portal, limit)

    # -- statements ------------------------------------------------------------------------------------------------

    def _check(self, text: bytes) -> None:
        if self.status == b"E" and text and not text.strip().startswith((b"ROLLBACK", b"COMMIT")):
            raise Failed("25P02", text)

    def _start(self, text: bytes) -> Portal:
        self._check(text)
        word = text.strip()
        if b"SELEC " in word or b"refused_by_dualwire" in word:
            raise Failed("42601", text)
        if b"1/0" in word:
            raise Failed("22012", text)
        self.executed.append(mark_of(text))
        rows: list[bytes] = []
        if word.startswith(b"BEGIN"):
            self.status = b"T"
        elif word.startswith((b"COMMIT", b"ROLLBACK")):
            self.status = b"I"
            self._portals = {name: portal for name, portal in self._portals.items() if portal.text == text}
        elif word.startswith(b"SET"):
            self.said += m.parameter_status("application_name", mark_of(text))
        elif word.startswith(b"NOTIFY"):
            self._say(m.NOTIFICATION, b"\0\0\0\1c\0" + mark_of(text).encode() + b"\0")
        elif word.startswith(b"RAISE"):
            self._say(m.NOTICE_RESPONSE, b"SNOTICE\0M" + mark_of(text).encode() + b"\0\0")
        elif word.startswith(b"DEALLOCATE"):
            self._deallocate(word.split()[1])
        elif b"pg_sleep" in word:
            self.asleep = True
        elif b"TO STDOUT" in word:
            self._copy_out(text)
        elif word.startswith(b"SELECT"):
            count = _ROWS.search(word)
            rows = [mark_of(text).encode()] * (int(count[1]) if count else 1)
        return Portal(text, rows)

    def _deallocate(self, name: bytes) -> None:
        if name == b"ALL":
            self._statements.clear()
        elif self._statements.pop(name, None) is None:
            raise Failed("26000")

    def _finish(self, portal: Portal, limit: int) -> None:
        rows = portal.rows or []
        now, portal.rows = (rows[:limit], rows[limit:]) if limit else (rows, [])
        for row in now:
            self._say(m.DATA_ROW, b"\0\1" + len(row).to_bytes(4, "big") + row)
        if limit and len(now) == limit:
            self._say(m.PORTAL_SUSPENDED)
        else:
            self._say(m.COMMAND_COMPLETE, b"DONE " + mark_of(portal.text).encode() + b"\0")

    # -- COPY ------------------------------------------------------------------------------------------------------

    def _copy_out(self, text: bytes) -> None:
        self._say(m.COPY_OUT_RESPONSE, _COPY_FORMAT)
        for _ in range(3):
            self._say(m.COPY_DATA, mark_of(text).encode() * 7)
        self._say(m.COPY_DONE)

    def _begin_copy(self, text: bytes, how: str) -> bool:
        if b"FROM STDIN" not in text:
            return False
        self._check(text)
        self._copying, self._copy_text, self._copied = how, text, 0
        self._say(m.COPY_IN_RESPONSE, _COPY_FORMAT)
        return True

    def _on_copy(self, kind: int, frame: bytes) -> None:
        how = self._copying
        failed = None
        if kind in (m.SYNC, m.FLUSH):
            return
        if kind == m.COPY_DATA:
            self._copied += 1
            if frame[m.HEADER :] != b"x\n":
                return
            failed = Failed("22P02", self._copy_text)
        elif kind == m.COPY_FAIL:
            failed = Failed("57014", self._copy_text)
        elif kind != m.COPY_DONE:
            raise AssertionError(
                f"{chr(kind)} in a copy ends the connection: no script of this model does it"
            )
        self._copying = ""
        if failed is not None:
            self._fail(failed)
            self._skipping = how == "extended"
        else:
            self.executed.append(mark_of(self._copy_text))
            self._say(m.COMMAND_COMPLETE, b"COPY " + str(self._copied).encode() + b"\0")
        if how == "simple":
            self._end_implicit()
            self._ready()

"""What a session hears of its two servers: each reply queue's events, with the server that they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.session.ports import Target

if TYPE_CHECKING:
    from proxy.session.core import Session


class ServerReplies:
    """The reply handler of one of a session's two servers."""

    __slots__ = ("_session", "_target")

    def __init__(self, session: Session, target: Target) -> None:
        self._session = session
        self._target = target

    def on_ready(self, status: int) -> None:
        self._session.on_ready(self._target, status)

    def on_copy_in(self, simple: bool) -> int:
        return self._session.on_copy_in(simple)

    def on_skipped_ready(self, status: int) -> None:
        self._session.on_skipped_ready(self._target)

    def on_error(self, message: bytes, quiet: bool) -> bytes | None:
        return self._session.on_error(self._target, message, quiet)

    def on_parameter(self, name: str, value: str) -> None:
        self._session.on_parameter(self._target, name, value)

    def on_notification(self) -> None:
        self._session.on_notification()

    def on_skipped(self) -> None:
        self._session.on_skipped()

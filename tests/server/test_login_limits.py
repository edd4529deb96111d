"""Bounds on clients that have not said yet who they are: size, time and number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.wire import messages as m
from proxy.wire.scram import Verifier
from proxy.wire.startup import MAX_STARTUP
from tests.conftest import Sidecar, SidecarFactory
from tests.server.handshake import SSL_REQUEST, Peer, error, kinds


def _limited(sidecar: SidecarFactory, limits: str) -> Sidecar:
    users = sidecar.directory / "users.txt"
    users.write_text(f'"app" "{Verifier.from_password("s3cret")}"\n')
    config = sidecar.default_config().replace(
        'method = "trust"', f'method = "scram-sha-256"\nusers_file = "{users}"'
    )
    return sidecar(f"{config}[limits]\n{limits}\n")


async def _login(proxy: Sidecar, password: str = "s3cret") -> tuple[Peer, list[bytes]]:
    peer = await Peer.dial("127.0.0.1", proxy.port)
    return peer, await peer.login({"user": "app", "database": "shop"}, password=password)


async def test_more_logins_at_a_time_than_allowed_are_refused(sidecar: SidecarFactory) -> None:
    proxy = _limited(sidecar, "max_logins = 3")
    # Those who are in do not count.
    inside = [await _login(proxy) for _ in range(5)]
    assert all(kinds(frames)[-1] == "Z" for _, frames in inside)
    waiting = [await Peer.dial("127.0.0.1", proxy.port) for _ in range(3)]
    waiting[0].say(m.startup({"user": "app", "database": "shop"}))
    waiting[1].say(b"\0")
    await waiting[0].frame()
    peer, frames = await _login(proxy)
    assert error(frames) == ("53300", "sorry, too many clients are logging in already (max_logins is 3)")
    assert await peer.rest() == b""
    # A cancel request is served nevertheless, and a place is free again once its client has gone or is in.
    sleeper = inside[0][0]
    sleeper.say(m.query(b"SELECT pg_sleep(60)"))
    await asyncio.sleep(0.3)
    canceller = await Peer.dial("127.0.0.1", proxy.port)
    canceller.say(m.cancel_request(*sleeper.key))
    await canceller.rest()
    assert error(await sleeper.until(m.READY_FOR_QUERY))[0] == "57014"
    waiting[1].close()
    for _ in range(100):
        peer, frames = await _login(proxy)
        if kinds(frames)[-1] == "Z":
            break
        await asyncio.sleep(0.05)
    assert kinds(frames)[-1] == "Z"
    for client in (*waiting, *(peer for peer, _ in inside)):
        client.close()


async def test_a_flood_of_silent_connections_is_bounded_and_ends(
    sidecar: SidecarFactory, eventually: Callable[..., None]
) -> None:
    proxy = _limited(sidecar, 'max_logins = 10\nclient_login_timeout = "1s"')
    peers = [await Peer.dial("127.0.0.1", proxy.port) for _ in range(400)]
    # 10 are listened to, 256 may be told why not, the others are closed at once.
    ends = await asyncio.gather(*(peer.rest() for peer in peers))
    assert sum(end == b"" for end in ends) >= 400 - 10 - 256
    for peer in peers:
        peer.close()
    peer, frames = await _login(proxy)
    assert kinds(frames)[-1] == "Z"
    peer.close()


async def test_a_login_that_takes_too_long_ends(sidecar: SidecarFactory) -> None:
    proxy = _limited(sidecar, 'client_login_timeout = "1s"')
    for said in (b"", b"\0\0", SSL_REQUEST, m.startup({"user": "app"}), m.startup({"user": "app"}) + b"p"):
        peer = await Peer.dial("127.0.0.1", proxy.port)
        peer.say(said)
        assert (await peer.rest()).endswith(b"in time\0\0")


async def test_no_more_is_read_than_postgresql_would(sidecar: SidecarFactory) -> None:
    proxy = _limited(sidecar, "max_logins = 5")
    peer = await Peer.dial("127.0.0.1", proxy.port)
    peer.say((MAX_STARTUP + 1).to_bytes(4, "big"))
    assert error([await peer.frame()])[0] == "08P01"
    peer = await Peer.dial("127.0.0.1", proxy.port)
    peer.say(m.startup({"user": "app"}))
    assert (await peer.frame())[0] == m.AUTHENTICATION
    peer.say(b"p" + (2**31 - 1).to_bytes(4, "big"))
    assert error([await peer.frame()])[0] == "08P01"
    assert await peer.rest() == b""


async def test_a_wrong_password_gives_its_place_back(sidecar: SidecarFactory) -> None:
    proxy = _limited(sidecar, "max_logins = 1")
    for _ in range(5):
        peer, frames = await _login(proxy, "wrong")
        assert error(frames)[0] == "28P01"
        assert await peer.rest() == b""
    peer, frames = await _login(proxy)
    assert kinds(frames)[-1] == "Z"
    peer.close()

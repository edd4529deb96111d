"""TLS towards clients: the context, when it is offered, and the connections that begin with a ClientHello.

Contract: :func:`server_context` raises ConfigError where certificate or key cannot be used, and never prompts. What a
client sends before the handshake is either refused by the caller or, with :func:`accept`, the handshake itself: there
is no way in which a byte that came in the clear is read as if it had come encrypted.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from typing import Any, cast

from proxy.config import ConfigError, Listen

ALPN = "postgresql"
_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


def server_context(listen: Listen) -> ssl.SSLContext | None:
    """The context for clients; None where no TLS is offered.

    Client certificates would be asked for here (``verify_mode`` and the authorities to trust).
    """
    if listen.tls_mode == "disable" or listen.tls_cert is None or listen.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[listen.tls_min_version]
    context.set_alpn_protocols([ALPN])
    # As PostgreSQL: every session makes its own keys, and keeps them.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0
    try:
        # Without the callback an encrypted key would be asked for on the terminal.
        context.load_cert_chain(listen.tls_cert, listen.tls_key, password=lambda: "")
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or getattr(exc, "reason", None) or str(exc)
        raise ConfigError(
            f"listen: the certificate {listen.tls_cert} with the key {listen.tls_key} cannot be used: {reason}",
            "tls_cert is the certificate with its chain, tls_key its unencrypted private key, both in PEM",
        ) from exc
    return context


def fingerprint(listen: Listen) -> tuple[bytes | None, ...]:
    """What tells that certificate or key have been renewed; a file that cannot be read has None."""
    found: list[bytes | None] = []
    for path in (listen.tls_cert, listen.tls_key):
        try:
            found.append(None if path is None else hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            found.append(None)
    return tuple(found)


async def accept(
    transport: asyncio.Transport, protocol: asyncio.Protocol, context: ssl.SSLContext, hello: bytes = b""
) -> asyncio.Transport:
    """The encrypted transport after the handshake; OSError if it fails.

    ``hello`` is what the client has sent of its handshake already: the transport read it before anybody could know that
    this client begins with TLS. asyncio has no call for such bytes, so they are handed to the TLS layer as the
    transport itself would do it (asyncio.BufferedProtocol), after that has been connected and before the transport
    reads on.
    """
    loop = asyncio.get_running_loop()
    transport.pause_reading()
    handshake = loop.create_task(loop.start_tls(transport, protocol, context, server_side=True))
    if hello:
        # One turn: start_tls has put its layer in place and scheduled that layer's start and the reading.
        await asyncio.sleep(0)
        loop.call_soon(_hand_over, transport, protocol, hello)
    try:
        return cast(asyncio.Transport, await handshake)
    except asyncio.CancelledError:
        handshake.cancel()
        raise


def _hand_over(transport: asyncio.Transport, plain: asyncio.Protocol, hello: bytes) -> None:
    layer: Any = transport.get_protocol()
    if layer is plain or transport.is_closing():
        transport.abort()
        return
    view = memoryview(hello)
    while view:
        buffer = memoryview(layer.get_buffer(len(view)))
        taken = min(len(buffer), len(view))
        buffer[:taken] = view[:taken]
        layer.buffer_updated(taken)
        view = view[taken:]


def agreed_on_postgresql(transport: asyncio.Transport) -> bool:
    """Whether client and server have named PostgreSQL's protocol to each other (ALPN)."""
    made = transport.get_extra_info("ssl_object")
    return made is not None and made.selected_alpn_protocol() == ALPN

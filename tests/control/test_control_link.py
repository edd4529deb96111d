"""The control link against a real control schema: follow, acknowledge, hold, and what happens when the link
breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import migrator.control
import proxy.control.link as link_module
from proxy.control.hub import RoutingHub
from proxy.control.link import ControlLink, ControlUnavailable
from proxy.control.routing import EMPTY, Hold, Routing, state_to_json
from proxy.dsn import parse
from proxy.rewrite.plan import Refusal

SCHEMA = (Path(migrator.control.__file__).parent / "schema.sql").read_text()
TABLE = "public.orders"


@dataclass
class Control:
    """The migrator's side: a database with the control schema, and a hand to publish with."""

    connection: Any
    dsn: str

    async def install(self) -> None:
        await self.connection.execute(SCHEMA)

    async def publish(self, routing: Routing, *, notify: bool = True, on: Any = None) -> None:
        """Publish, in a transaction of ``on`` if given."""
        on = on or self.connection
        await on.execute(
            "UPDATE dualwire.routing SET epoch = $1, epoch_id = $2, timeline = $3, revision = $4,"
            " state = $5::jsonb",
            routing.epoch,
            routing.epoch_id,
            routing.timeline,
            routing.revision,
            json.dumps(state_to_json(routing)),
        )
        if notify:
            await on.execute("SELECT pg_notify('dualwire', $1)", str(routing.revision))

    async def sidecars(self) -> list[dict[str, Any]]:
        return [dict(row) for row in await self.connection.fetch("SELECT * FROM dualwire.sidecar")]

    async def sidecar(self) -> dict[str, Any]:
        (row,) = await self.sidecars()
        return row

    async def backends(self) -> set[int]:
        return {row["pid"] for row in await self.connection.fetch("SELECT pid FROM dualwire.backend")}

    async def cut(self) -> None:
        """End every other connection to the database, and let no new one in."""
        async with self.elsewhere() as other:
            name = await self.connection.fetchval("SELECT current_database()")
            await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await self.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    async def mend(self) -> None:
        async with self.elsewhere() as other:
            name = await self.connection.fetchval("SELECT current_database()")
            await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')

    @contextlib.asynccontextmanager
    async def elsewhere(self, database: str | None = "postgres") -> AsyncIterator[Any]:
        """Another connection, to the maintenance database unless told."""
        options = {} if database is None else {"database": database}
        other = await asyncpg.connect(self.dsn, **options)
        try:
            yield other
        finally:
            await other.close()


@dataclass
class Follower:
    """A sidecar as far as control goes: a hub, a link, and sessions that park."""

    hub: RoutingHub
    link: ControlLink
    pids: list[int] = field(default_factory=list)
    released: list[tuple[Refusal | None, int]] = field(default_factory=list)

    def park(self) -> None:
        """A session with a statement on the held table waits."""
        assert self.hub.must_park((TABLE,), False, False)
        self.hub.park(lambda refusal: self.released.append((refusal, self.hub.routing.epoch)))


Follow = Callable[..., Awaitable[Follower]]


@pytest.fixture
async def bare(database: Any) -> AsyncIterator[Control]:
    """A database without a control schema."""
    connection = await asyncpg.connect(database.dsn)
    yield Control(connection, database.dsn)
    await connection.close()


@pytest.fixture
async def control(bare: Control) -> Control:
    await bare.install()
    return bare


@pytest.fixture
async def follow(bare: Control) -> AsyncIterator[Follow]:
    """Starts a link. Without ``poll_seconds`` the poll is slow, so that only notifications can be the
    cause."""
    started: list[Follower] = []

    async def start(poll_seconds: float = 30.0, hold_max: float = 5.0, dsn: str | None = None) -> Follower:
        pids: list[int] = []
        hub = RoutingHub()
        link = ControlLink(
            parse(dsn or bare.dsn),
            hub,
            service="checkout",
            speaks="auto",
            pids=lambda: pids,
            stats=lambda: {"queries": 3},
            hold_max=hold_max,
            poll_seconds=poll_seconds,
        )
        follower = Follower(hub, link, pids)
        started.append(follower)
        link.start()
        return follower

    yield start
    for follower in started:
        await follower.link.stop()


async def until(condition: Callable[[], Any], within: float = 5.0) -> Any:
    """Wait for a condition, which may be a coroutine function, and give its value."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert asyncio.get_running_loop().time() < deadline, f"not within {within} s"
        await asyncio.sleep(0.01)


def routing(epoch: int, revision: int | None = None, **changes: Any) -> Routing:
    made = Routing(epoch=epoch, epoch_id="e", timeline=1, revision=revision or epoch + 100)
    return replace(made, **changes)


HOLD = Hold(7, (TABLE,), 0.6)


async def test_without_a_control_schema_the_routing_is_empty_and_nobody_waits(follow: Follow) -> None:
    follower = await follow()
    assert await follower.link.wait_known(5)
    assert follower.hub.routing == EMPTY
    await follower.link.enter([1], within=0.1)
    status = follower.link.status()
    assert (status.connected, status.schema_present, status.registered) == (True, False, False)


async def test_a_control_schema_that_appears_later_is_found(bare: Control, follow: Follow) -> None:
    follower = await follow(poll_seconds=0.1)
    await follower.link.wait_known(5)
    await bare.install()
    await until(lambda: follower.link.status().registered)
    row = await until(bare.sidecars)
    assert [(r["service"], r["speaks"]) for r in row] == [("checkout", "auto")]
    await until(lambda: follower.hub.routing.epoch == 1)


async def test_a_registered_sidecar_acknowledges_and_reports(control: Control, follow: Follow) -> None:
    follower = await follow()
    follower.pids.append(4711)
    assert await follower.link.wait_known(5)
    row = await control.sidecar()
    assert row["epoch"] == follower.hub.routing.epoch == 1
    assert row["epoch_id"] == follower.hub.routing.epoch_id
    assert json.loads(row["stats"]) == {"queries": 3}
    assert follower.link.status().lease_seconds > 5


async def test_a_publication_arrives_by_notification(control: Control, follow: Follow) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    await control.publish(routing(2))
    await until(lambda: follower.hub.routing.epoch == 2, within=1.0)

    async def acknowledged() -> bool:
        return bool((await control.sidecar())["epoch"] == 2)

    await until(acknowledged, within=1.0)


async def test_a_publication_without_a_notification_is_polled(control: Control, follow: Follow) -> None:
    follower = await follow(poll_seconds=0.1)
    await follower.link.wait_known(5)
    await control.publish(routing(1, 55, percent=10), notify=False)
    await until(lambda: follower.hub.routing.revision == 55)


async def test_an_epoch_is_acknowledged_only_when_no_batch_acts_under_an_earlier_one(
    control: Control, follow: Follow
) -> None:
    follower = await follow(poll_seconds=0.05)
    await follower.link.wait_known(5)
    term = follower.hub.term
    term.active += 1
    await control.publish(routing(2))
    await until(lambda: follower.hub.routing.epoch == 2)
    await asyncio.sleep(0.3)
    row = await control.sidecar()
    assert (row["epoch"], row["revision"]) == (1, 102)
    follower.hub.leave(term)

    async def acknowledged() -> bool:
        return bool((await control.sidecar())["epoch"] == 2)

    await until(acknowledged, within=1.0)


async def test_entering_registers_backends_and_brings_the_routing_up_to_date(
    control: Control, follow: Follow
) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    await control.publish(routing(2), notify=False)
    follower.pids += [11, 12]
    await follower.link.enter([11, 12])
    assert follower.hub.routing.epoch == 2
    assert await control.backends() == {11, 12}


async def test_backends_that_are_gone_are_forgotten_with_the_next_report(
    control: Control, follow: Follow
) -> None:
    follower = await follow(poll_seconds=0.05)
    await follower.link.wait_known(5)
    follower.pids.append(11)
    await follower.link.enter([11])
    follower.pids.clear()

    async def forgotten() -> bool:
        return await control.backends() == set()

    await until(forgotten)


async def test_a_forgotten_sidecar_registers_under_a_new_id(control: Control, follow: Follow) -> None:
    follower = await follow(poll_seconds=0.05)
    await follower.link.wait_known(5)
    first = (await control.sidecar())["id"]
    await control.connection.execute("DELETE FROM dualwire.sidecar")
    row = (await until(control.sidecars))[0]
    assert row["id"] != first
    await follower.link.enter([5])
    assert follower.link.status().problem is None


async def test_entering_as_a_forgotten_sidecar_registers_first(control: Control, follow: Follow) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    await control.connection.execute("DELETE FROM dualwire.sidecar")
    await follower.link.enter([5])
    assert 5 in await control.backends()


async def test_an_epoch_that_went_back_with_another_id_is_accepted(control: Control, follow: Follow) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    await control.publish(routing(9))
    await until(lambda: follower.hub.routing.epoch == 9)
    await control.publish(routing(8, epoch_id="after failover", timeline=2))
    await until(lambda: follower.hub.routing.timeline == 2)

    async def acknowledged() -> bool:
        row = await control.sidecar()
        return (row["epoch"], row["epoch_id"]) == (8, "after failover")

    await until(acknowledged)


async def test_a_routing_that_is_not_understood_is_not_acted_on(control: Control, follow: Follow) -> None:
    follower = await follow(poll_seconds=0.05)
    await follower.link.wait_known(5)
    await control.connection.execute(
        """UPDATE dualwire.routing SET epoch = 2, revision = 2, state = state || '{"format": 99}'"""
    )
    await until(lambda: follower.link.status().problem)
    status = follower.link.status()
    assert status.problem is not None
    assert "format 99" in status.problem
    assert not status.known
    assert follower.hub.routing.epoch == 1
    assert (await control.sidecar())["epoch"] == 1
    with pytest.raises(ControlUnavailable, match="format 99"):
        await follower.link.enter([1], within=0.3)
    await control.publish(routing(3))
    await until(lambda: follower.link.status().known)


async def test_leaving_takes_the_sidecar_out_of_the_registry(control: Control, follow: Follow) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    await follower.link.stop()
    assert await control.sidecars() == []


async def test_speaking_another_version_is_registered(control: Control, follow: Follow) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    follower.link.speak("0001_status")

    async def speaks() -> bool:
        return [row["speaks"] for row in await control.sidecars()] == ["0001_status"]

    await until(speaks)


async def test_a_replica_is_refused_as_no_primary(database: Any, follow: Follow) -> None:
    database.wait_replayed()
    follower = await follow(dsn=database.replica_dsn)
    await until(lambda: "in recovery" in (follower.link.status().problem or ""))
    assert not await follower.link.wait_known(0.2)


# -- the hold ------------------------------------------------------------------------------------------


async def held(control: Control) -> bool:
    row = await control.sidecar()
    return (row["hold_id"], row["held"]) == (7, True)


async def test_a_drained_hold_is_claimed_at_once_and_released_with_the_new_routing(
    control: Control, follow: Follow
) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    await control.publish(routing(2, hold=replace(HOLD, seconds=5)))
    await until(lambda: held(control), within=1.0)
    follower.park()
    await control.publish(routing(3))
    await until(lambda: follower.released, within=1.0)
    assert follower.released == [(None, 3)]
    assert (await control.sidecar())["held"] is False


async def test_a_hold_waits_for_who_touches_the_table(control: Control, follow: Follow) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    follower.hub.touch()
    await control.publish(routing(2, hold=replace(HOLD, seconds=5)))
    await until(lambda: follower.hub.hold)
    await asyncio.sleep(0.2)
    assert not await held(control)
    follower.hub.untouch()
    await until(lambda: held(control), within=1.0)


async def test_a_hold_whose_time_is_over_is_given_up_and_not_taken_again(
    control: Control, follow: Follow
) -> None:
    follower = await follow(poll_seconds=0.05)
    await follower.link.wait_known(5)
    await control.publish(routing(2, hold=HOLD))
    await until(lambda: held(control))
    follower.park()
    await until(lambda: follower.released, within=2.0)
    assert follower.released == [(None, 2)]
    assert (await control.sidecar())["held"] is False
    await asyncio.sleep(0.3)
    assert follower.hub.hold is None
    assert not await held(control)


async def test_the_sidecars_own_bound_on_a_hold_wins(control: Control, follow: Follow) -> None:
    follower = await follow(hold_max=0.3)
    await follower.link.wait_known(5)
    await control.publish(routing(2, hold=replace(HOLD, seconds=60)))
    await until(lambda: follower.hub.hold)
    follower.park()
    await until(lambda: follower.released, within=2.0)


async def test_a_release_during_a_swap_waits_until_it_is_decided(control: Control, follow: Follow) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    await control.publish(routing(2, hold=HOLD))
    await until(lambda: held(control))
    follower.park()
    async with control.elsewhere(None) as swap, swap.transaction():
        await swap.execute("SELECT FROM dualwire.sidecar FOR UPDATE")
        await control.publish(routing(3), on=swap)
        await asyncio.sleep(HOLD.seconds + 0.5)
        assert follower.released == []
    await until(lambda: follower.released, within=1.0)
    assert follower.released == [(None, 3)]


async def test_a_new_connection_cannot_enter_during_a_swap(control: Control, follow: Follow) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    await control.publish(routing(2, hold=replace(HOLD, seconds=5)))
    await until(lambda: held(control))
    async with control.elsewhere(None) as swap, swap.transaction():
        await swap.execute("SELECT FROM dualwire.sidecar FOR UPDATE")
        await control.publish(routing(3), on=swap)
        entering = asyncio.ensure_future(follower.link.enter([77]))
        await asyncio.sleep(0.3)
        assert not entering.done()
    await entering
    assert follower.hub.routing.epoch == 3


async def test_a_lost_link_keeps_the_routing_and_comes_back(control: Control, follow: Follow) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    await control.publish(routing(2))
    await until(lambda: follower.hub.routing.epoch == 2)
    await control.cut()
    await until(lambda: not follower.link.status().connected)
    assert follower.hub.routing.epoch == 2
    assert follower.link.status().known
    with pytest.raises(ControlUnavailable):
        await follower.link.enter([1], within=0.3)
    await control.publish(routing(3), notify=False)
    await control.mend()
    await until(lambda: follower.hub.routing.epoch == 3, within=10.0)
    await follower.link.enter([1])
    assert follower.link.status().reconnects >= 1


async def test_a_client_that_goes_away_does_not_interrupt_entering(control: Control, follow: Follow) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    entering = asyncio.ensure_future(follower.link.enter([33]))
    await asyncio.sleep(0)
    entering.cancel()

    async def entered() -> bool:
        return 33 in await control.backends()

    await until(entered)


async def test_a_hold_never_claimed_is_released_in_time_though_the_link_is_lost(
    control: Control, follow: Follow
) -> None:
    follower = await follow()
    await follower.link.wait_known(5)
    follower.hub.touch()
    await control.publish(routing(2, hold=HOLD))
    await until(lambda: follower.hub.hold)
    follower.park()
    await control.cut()
    await until(lambda: follower.released, within=2.0)
    assert follower.released == [(None, 2)]
    await control.mend()


async def test_a_claimed_hold_outlasts_the_link_and_what_waits_too_long_is_refused(
    control: Control, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "REFUSE_AFTER", 0.5)
    follower = await follow()
    await follower.link.wait_known(5)
    await control.publish(routing(2, hold=HOLD))
    await until(lambda: held(control))
    follower.park()
    await control.cut()
    await asyncio.sleep(HOLD.seconds + 0.2)
    assert follower.released == []
    await until(lambda: follower.released, within=2.0)
    (refusal, _epoch) = follower.released.pop()
    assert refusal is not None
    assert refusal.sqlstate == "08006"
    # Names may have been swapped: later statements are held too, and refused in their turn.
    monkeypatch.setattr(link_module, "REFUSE_AFTER", 30.0)
    follower.park()
    await until(lambda: follower.released, within=2.0)
    assert follower.released.pop()[0] is not None
    follower.park()
    await control.publish(routing(3), notify=False)
    await control.mend()
    await until(lambda: follower.hub.routing.epoch == 3, within=10.0)
    await until(lambda: follower.hub.hold is None)
    assert follower.released[-1] == (None, 3)

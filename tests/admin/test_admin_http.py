"""The HTTP endpoints over a sidecar whose state is plain values: what a probe, a scrape and a person get."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.admin.http import AdminServer
from proxy.admin.view import DatabaseView, PoolView, ReloadView, ReplicaView
from proxy.config import Address
from proxy.control.link import LinkStatus
from proxy.control.routing import EMPTY, Hold, Routing
from proxy.stats import Histogram, Stats

LINK = LinkStatus(
    sidecar_id="5f",
    connected=True,
    schema_present=True,
    registered=True,
    known=True,
    lease_seconds=9.5,
    acknowledged=("e", 4),
    reconnects=2,
    holding=False,
    problem=None,
)
ROUTING = Routing(
    epoch=4,
    epoch_id="e",
    timeline=1,
    revision=9,
    migration="0001_status",
    phase="cutover",
    new="0001_status",
    serves_new=True,
    auto="new",
    percent=25,
    dual_write=True,
    versions=("base", "0001_status"),
    hold=Hold(7, ("public.orders",), 2.0),
)
DATABASE = DatabaseView(
    name="shop",
    schema_version="auto",
    routing=ROUTING,
    link=LINK,
    stats=Stats(),
    primary_reached=True,
    dual_write_enabled=True,
    pools=(PoolView("10.0.0.1:5432", "primary", active=3, idle=2, connecting=1, waiting=4, limit=100),),
    replicas=(ReplicaView("10.0.0.2:5432", usable=True, lag_seconds=0.25, replayed_lsn="0/3000060"),),
    holds_total=6,
)


@dataclass
class Sidecar:
    """A sidecar's state, to be set by a test."""

    database: DatabaseView = DATABASE
    open: bool = True
    last: ReloadView = field(default_factory=ReloadView)

    def listening(self) -> bool:
        return self.open

    def databases(self) -> Sequence[DatabaseView]:
        return [self.database]

    def config_path(self) -> str:
        return "/etc/dualwire.toml"

    def view(self) -> ReloadView:
        return self.last


@pytest.fixture
def sidecar_state() -> Sidecar:
    return Sidecar(replace(DATABASE, stats=Stats()))


@pytest.fixture
async def get(sidecar_state: Sidecar) -> AsyncIterator[Any]:
    """``await get(path)`` gives (status, text) from a server on a real socket."""
    server = AdminServer(Address("127.0.0.1", 0), sidecar_state, sidecar_state)
    await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:

        async def ask(path: str) -> tuple[int, str]:
            async with session.get(path) as answer:
                return answer.status, await answer.text()

        yield ask
    await server.stop()


async def test_metrics_of_pools_tell_states_waits_and_pins(get: Any, sidecar_state: Sidecar) -> None:
    waits = Histogram()
    waits.observe(0.002)
    pool = PoolView(
        "10.0.0.1:5432",
        "primary",
        active=3,
        idle=2,
        connecting=1,
        waiting=4,
        limit=100,
        cleaning=5,
        longest_wait=1.5,
        waits=waits,
        connects=11,
        connect_failures=6,
        paused=True,
        failing="no route",
    )
    stats = Stats()
    stats.pins["listen"] += 1
    stats.pins_total["listen"] += 2
    sidecar_state.database = replace(sidecar_state.database, pools=(pool,), stats=stats)
    _, text = await get("/metrics")
    place = 'database="shop",role="primary",server="10.0.0.1:5432"'
    for line in (
        f'dualwire_pool_connections{{{place},state="cleaning"}} 5.0',
        f"dualwire_pool_longest_wait_seconds{{{place}}} 1.5",
        f"dualwire_pool_connects_total{{{place}}} 11.0",
        f"dualwire_pool_connect_failures_total{{{place}}} 6.0",
        f"dualwire_pool_paused{{{place}}} 1.0",
        f"dualwire_pool_failing{{{place}}} 1.0",
        f"dualwire_pool_wait_seconds_sum{{{place}}} 0.002",
        'dualwire_pinned_sessions{database="shop",reason="listen"} 1.0',
        'dualwire_pins_total{database="shop",reason="listen"} 2.0',
    ):
        assert _sorted(line) in {_sorted(told) for told in text.splitlines()}


def _sorted(line: str) -> tuple[str, ...]:
    """A metric's line whatever the order of its labels."""
    name, _, rest = line.partition("{")
    labels, _, value = rest.partition("}")
    return (name, value, *sorted(labels.split(",")))


async def test_health_is_the_process_alone(get: Any, sidecar_state: Sidecar) -> None:
    sidecar_state.open = False
    sidecar_state.database = replace(sidecar_state.database, primary_reached=False)
    assert (await get("/healthz"))[0] == 200


async def test_ready_when_everything_is_there(get: Any) -> None:
    status, text = await get("/readyz")
    assert (status, json.loads(text)) == (200, {"ready": True, "reasons": []})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"primary_reached": False}, "shop: the primary was not reached"),
        (
            {"link": replace(LINK, known=False, problem="format 99 is not understood")},
            "shop: the routing state is not known: format 99 is not understood",
        ),
        (
            {"link": replace(LINK, known=False, schema_present=None)},
            "shop: the routing state is not known: the primary was not asked yet",
        ),
    ],
)
async def test_not_ready_says_why(
    get: Any, sidecar_state: Sidecar, change: dict[str, Any], reason: str
) -> None:
    sidecar_state.database = replace(sidecar_state.database, **change)
    status, text = await get("/readyz")
    assert (status, json.loads(text)) == (503, {"ready": False, "reasons": [reason]})


async def test_not_ready_once_the_listener_is_closed(get: Any, sidecar_state: Sidecar) -> None:
    sidecar_state.open = False
    status, text = await get("/readyz")
    assert status == 503
    assert json.loads(text)["reasons"] == ["not listening for clients"]


async def test_a_lost_link_alone_leaves_a_sidecar_ready(get: Any, sidecar_state: Sidecar) -> None:
    link = replace(LINK, connected=False, problem="cannot connect")
    sidecar_state.database = replace(sidecar_state.database, link=link)
    assert (await get("/readyz"))[0] == 200


async def test_status_tells_routing_control_pools_and_the_last_reload(
    get: Any, sidecar_state: Sidecar
) -> None:
    stats = sidecar_state.database.stats
    stats.clients["old"] = 2
    stats.refusals["not_covered"] = 3
    stats.decisions["replica", "read"] = 5
    sidecar_state.last = ReloadView(
        at=0.0, result="rejected", error="unknown key listn", pending_restart=("listen.address",)
    )
    status, text = await get("/status")
    assert status == 200
    found = json.loads(text)
    shop = found["databases"]["shop"]
    assert shop["routing"]["epoch"] == 4
    assert shop["routing"]["phase"] == "cutover"
    assert shop["routing"]["serves"] == ["base", "0001_status"]
    assert shop["routing"]["hold"] == {"id": 7, "tables": ["public.orders"], "seconds": 2.0}
    assert shop["control"]["acknowledged"] == {"epoch_id": "e", "epoch": 4}
    assert shop["clients"] == {"old": 2, "new": 0, "auto": 0}
    assert shop["pools"][0]["waiting"] == 4
    assert shop["replicas"][0]["lag_seconds"] == 0.25
    assert shop["counts"]["refused"] == 3
    assert shop["counts"]["decisions"] == {"replica:read": 5}
    assert found["config"]["path"] == "/etc/dualwire.toml"
    assert found["config"]["reload"] == {
        "at": "1970-01-01T00:00:00+00:00",
        "result": "rejected",
        "error": "unknown key listn",
        "pending_restart": ["listen.address"],
        "totals": {},
    }


async def test_metrics_are_valid_and_read_at_scrape_time(get: Any, sidecar_state: Sidecar) -> None:
    stats = sidecar_state.database.stats
    stats.queries = 12
    stats.plan_hits = 9
    stats.plan_templates = 5
    stats.caches["templates"].hits = 5
    stats.caches["verdicts"].bytes = 700
    stats.rewrites["mirror_set"] = 4
    stats.decisions["primary", "write"] = 7
    stats.latency.observe(0.002)
    stats.latency.observe(99.0)
    sidecar_state.last = ReloadView(at=1.0, result="applied", totals={"applied": 2})
    status, text = await get("/metrics")
    assert status == 200
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return samples[f"dualwire_{name}", tuple(sorted(labels.items()))]

    shop = {"database": "shop"}
    assert value("queries_total", **shop) == 12
    assert value("plan_cache_lookups_total", **shop, result="hit") == 9
    assert value("plan_cache_lookups_total", **shop, result="template") == 5
    assert value("plan_cache_hits_total", **shop, cache="templates") == 5
    assert value("plan_cache_bytes", **shop, cache="verdicts") == 700
    assert value("plan_cache_evictions_total", **shop, cache="plans") == 0
    assert value("rewrites_total", **shop, reason="mirror_set") == 4
    assert value("routing_decisions_total", **shop, target="primary", reason="write") == 7
    assert value("epoch", **shop) == 4
    assert value("phase", **shop, phase="cutover") == 1
    assert value("phase", **shop, phase="none") == 0
    assert value("lease_seconds", **shop) == 9.5
    assert value("clients", **shop, version="old") == 0
    assert value("replica_lag_seconds", **shop, replica="10.0.0.2:5432") == 0.25
    assert value("pool_connections", **shop, server="10.0.0.1:5432", role="primary", state="active") == 3
    assert value("parked_statements_total", **shop) == 6
    assert value("statement_seconds_count", **shop) == 2
    assert value("statement_seconds_bucket", **shop, le="0.0025") == 1
    assert value("reloads_total", result="applied") == 2
    assert value("reloads_total", result="rejected") == 0
    assert any(name == "process_resident_memory_bytes" for name, _labels in samples)
    stats.queries += 1
    _status, text = await get("/metrics")
    assert 'dualwire_queries_total{database="shop"} 13.0' in text


async def test_without_a_migration_the_phase_is_none(get: Any, sidecar_state: Sidecar) -> None:
    sidecar_state.database = replace(sidecar_state.database, routing=EMPTY)
    _status, text = await get("/metrics")
    assert 'dualwire_phase{database="shop",phase="none"} 1.0' in text


async def test_an_address_in_use_is_an_error_at_the_start(sidecar_state: Sidecar) -> None:
    first = AdminServer(Address("127.0.0.1", 0), sidecar_state, sidecar_state)
    await first.start()
    second = AdminServer(Address("127.0.0.1", first.port), sidecar_state, sidecar_state)
    with pytest.raises(OSError, match=r"[Aa]ddress"):
        await second.start()
    await first.stop()


def test_a_quantile_is_the_bound_of_its_bucket() -> None:
    stats = Stats()
    assert stats.latency.quantile(0.99) is None
    for _ in range(99):
        stats.latency.observe(0.0004)
    before = list(stats.latency.counts)
    assert stats.latency.quantile(0.99) == 0.0005
    stats.latency.observe(3.0)
    assert stats.latency.quantile(0.5) == 0.0005
    assert stats.latency.quantile(0.99, since=before) == 5.0
    assert stats.latency.quantile(0.99, since=list(stats.latency.counts)) is None

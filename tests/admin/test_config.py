"""The configuration file: what is wrong is named with its path and what to do; the environment wins over
it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.config import Address, ConfigError, Database, Settings, load
from proxy.config_changes import Change, diff, keep_restart_keys

SAMPLE = Path(__file__).parents[2] / "config" / "dualwire.toml"

MINIMAL = """
[auth]
method = "trust"
[databases.shop]
primary = "postgresql://shop@10.0.0.1/shop"
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(text: str) -> Path:
        path = tmp_path / "dualwire.toml"
        path.write_text(text)
        return path

    return made


def rejected(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.hint, "an error without what to do next"
    return caught.value


def test_the_sample_loads_and_holds_the_defaults(write: Write) -> None:
    sample = load(SAMPLE)
    minimal = load(write(MINIMAL))
    assert diff(sample, minimal) == [Change("databases.shop.primary", live=False)]


def test_the_sample_names_every_key() -> None:
    def keys(model: type) -> set[str]:
        fields = model.model_fields  # type: ignore[attr-defined]
        return set(fields).union(
            *(keys(f.annotation) for f in fields.values() if hasattr(f.annotation, "model_fields"))
        )

    text = SAMPLE.read_text()
    named = (keys(Settings) | keys(Database)) - {"databases"}
    assert [key for key in sorted(named) if f"{key} = " not in text and f"{key}]" not in text] == []


def test_a_minimal_file_is_enough(write: Write) -> None:
    settings = load(write(MINIMAL))
    shop = settings.databases["shop"]
    assert settings.listen.address == Address("127.0.0.1", 6432)
    assert (shop.primary.host, shop.primary.port, shop.primary.database) == ("10.0.0.1", 5432, "shop")
    assert (shop.pool_mode, shop.schema_version, shop.pool_size) == ("session", "auto", 100)
    assert shop.reads.max_lag == 1.0
    assert settings.limits.hold_max == 2.0
    assert shop.service_name("shop").endswith("/shop")


def test_an_unknown_key_is_named_with_its_path_and_the_nearest_known_one(write: Write) -> None:
    error = rejected(write(MINIMAL + "[databases.shop.reads]\nmax_lagg = '1s'\n"))
    assert "unknown key databases.shop.reads.max_lagg" in error.message
    assert error.hint == "did you mean databases.shop.reads.max_lag?"


def test_an_unknown_section_is_named(write: Write) -> None:
    error = rejected(write(MINIMAL + "[listn]\naddress = '127.0.0.1:1'\n"))
    assert "unknown key listn" in error.message
    assert error.hint == "did you mean listen?"


def test_an_unknown_key_like_no_other_gets_the_known_ones(write: Write) -> None:
    error = rejected(write(MINIMAL + "[log]\nzzz = 1\n"))
    assert error.hint == "known keys of log: format, level"


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    error = rejected(tmp_path / "nothing.toml")
    assert "nothing.toml" in error.message
    assert "--config" in error.hint


def test_text_that_is_no_toml_is_named_with_its_line(write: Write) -> None:
    assert "line 2" in rejected(write("[listen]\naddress = \n")).message


def test_no_database_is_an_error(write: Write) -> None:
    assert "databases" in rejected(write('[auth]\nmethod = "trust"\n')).message


def test_the_name_of_the_console_is_reserved(write: Write) -> None:
    assert "reserved" in rejected(write(MINIMAL.replace("shop]", "dualwire]"))).message


@pytest.mark.parametrize("address", ["0.0.0.0:6432", "10.1.2.3:6432", "[::]:6432", "db.internal:6432"])
def test_trust_is_refused_where_others_can_connect(write: Write, address: str) -> None:
    error = rejected(write(MINIMAL + f'[listen]\naddress = "{address}"\n'))
    assert "trust" in error.message
    assert "loopback" in error.message


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "/run/dualwire"])
def test_trust_is_fine_where_only_this_machine_can_connect(write: Write, address: str) -> None:
    assert load(write(MINIMAL + f'[listen]\naddress = "{address}"\n')).auth.method == "trust"


def test_scram_needs_a_users_file(write: Write) -> None:
    assert "users_file" in rejected(write(MINIMAL.replace('"trust"', '"scram-sha-256"'))).message


def test_paths_are_relative_to_the_file(write: Write, tmp_path: Path) -> None:
    settings = load(write(MINIMAL.replace('"trust"', '"scram-sha-256"\nusers_file = "users.txt"')))
    assert settings.auth.users_file == tmp_path / "users.txt"


def test_a_socket_directory_names_its_socket_as_postgresql_does(write: Write) -> None:
    settings = load(write(MINIMAL + '[listen]\naddress = "/run/dualwire:7000"\n'))
    assert settings.listen.address.socket_path == "/run/dualwire/.s.PGSQL.7000"


@pytest.mark.parametrize(
    ("line", "where", "complaint"),
    [
        ("[databases.shop.reads]\nmax_lag = '1 fortnight'", "databases.shop.reads.max_lag", "a duration is"),
        ("[databases.shop.reads]\nmax_lag = 5", "databases.shop.reads.max_lag", "a duration is"),
        ("[databases.shop.reads]\nmax_lag = '0s'", "databases.shop.reads.max_lag", "longer than zero"),
        ("[databases.shop.reads]\nreplica_percent = 101", "replica_percent", "100"),
        ("[databases.shop.reads]\nconsistency = 'bounded'", "consistency", "not available yet"),
        ("[limits]\nmax_packet = '1 furlong'", "limits.max_packet", "a size is"),
        ("[limits]\nmax_clients = 0", "limits.max_clients", "1"),
        ("[listen]\naddress = 'nowhere'", "listen.address", "host:port"),
        ("[admin]\naddress = '/run/x'", "admin.address", "host:port"),
        ("[listen]\ntls_cert = 'a.crt'", "listen", "go together"),
        ("[log]\nlevel = 'loud'", "log.level", "debug"),
    ],
)
def test_a_bad_value_is_named_with_its_path(write: Write, line: str, where: str, complaint: str) -> None:
    error = rejected(write(f"{MINIMAL}\n{line}\n"))
    assert where in error.message
    assert complaint in error.message


def test_a_delay_of_zero_needs_no_unit_and_a_duration_cannot_be_zero(write: Write) -> None:
    limits = load(
        write(MINIMAL + "[limits]\nquery_wait_timeout = 0\nidle_transaction_timeout = '0'\n")
    ).limits
    assert (limits.query_wait_timeout, limits.idle_transaction_timeout) == (0.0, 0.0)
    assert "limits.server_lifetime" in rejected(write(MINIMAL + "[limits]\nserver_lifetime = 0\n")).message


def test_a_minimum_above_the_maximum_is_refused(write: Write) -> None:
    error = rejected(write(MINIMAL + "pool_size = 2\nmin_pool_size = 3\n"))
    assert "min_pool_size (3) is more than pool_size (2)" in error.message


def test_sizes_and_timeouts_of_pools_change_live_and_the_mode_does_not(write: Write) -> None:
    old = load(write(MINIMAL))
    new = load(
        write(
            MINIMAL
            + 'pool_mode = "transaction"\nmin_pool_size = 1\nreserve_pool_size = 2\nreserve_pool_timeout = "1s"\n'
            "max_prepared_statements = 5\n[limits]\nserver_lifetime = '1min'\nserver_login_retry = '1s'\n"
            "[admin]\nusers = ['boss']\nstats_users = ['viewer']\n"
        )
    )
    assert [change.path for change in diff(old, new) if not change.live] == ["databases.shop.pool_mode"]
    assert len(diff(old, new)) == 9


def test_a_bad_connection_string_never_shows_its_password(write: Write) -> None:
    error = rejected(write(MINIMAL.replace("shop@10.0.0.1/shop", "shop:hunter2@10.0.0.1/shop?colour=red")))
    assert "databases.shop.primary" in error.message
    assert "colour" in error.message
    assert "hunter2" not in str(error)


def test_a_missing_tls_file_is_named(write: Write) -> None:
    error = rejected(write(MINIMAL + "[listen]\ntls_cert = 'no.crt'\ntls_key = 'no.key'\n"))
    assert "no.crt" in error.message


def test_the_environment_wins_over_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALWIRE_LISTEN__ADDRESS", "127.0.0.1:7777")
    monkeypatch.setenv("DUALWIRE_DATABASES__SHOP__PRIMARY", "postgresql://app@db:1234/store")
    monkeypatch.setenv("DUALWIRE_DATABASES__SHOP__REPLICAS", "postgresql://a@r1/s postgresql://a@r2/s")
    monkeypatch.setenv("DUALWIRE_DATABASES__SHOP__READS__MAX_LAG", "250ms")
    monkeypatch.setenv("DUALWIRE_DATABASES__SHOP__DUAL_WRITE__ENABLED", "false")
    monkeypatch.setenv("DUALWIRE_LIMITS__MAX_CLIENTS", "7")
    settings = load(write(MINIMAL))
    shop = settings.databases["shop"]
    assert settings.listen.address.port == 7777
    assert (shop.primary.label, shop.primary.database) == ("db:1234", "store")
    assert [replica.host for replica in shop.replicas] == ["r1", "r2"]
    assert shop.reads.max_lag == 0.25
    assert shop.dual_write.enabled is False
    assert settings.limits.max_clients == 7


def test_the_environment_finds_a_database_whatever_its_case(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALWIRE_DATABASES__SHOP__POOL_SIZE", "3")
    settings = load(write(MINIMAL.replace("shop]", "Shop]")))
    assert {name: database.pool_size for name, database in settings.databases.items()} == {"Shop": 3}


def test_an_unknown_variable_is_an_error_too(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALWIRE_LISTEN__ADRESS", "127.0.0.1:7777")
    error = rejected(write(MINIMAL))
    assert "unknown key listen.adress" in error.message
    assert error.hint == "did you mean listen.address?"


def test_variables_of_other_commands_are_left_alone(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALWIRE_DSN", "postgresql://app@db/store")
    load(write(MINIMAL))


CHANGED = """
[listen]
address = "127.0.0.1:7000"
[auth]
method = "trust"
[log]
level = "debug"
format = "json"
[limits]
max_clients = 5
[databases.shop]
primary = "postgresql://shop@10.0.0.9/shop"
schema_version = "0001_status"
service = "checkout"
pool_size = 7
[databases.shop.reads]
replica_percent = 50
[databases.shop.dual_write]
enabled = false
[databases.other]
primary = "postgresql://shop@10.0.0.9/other"
"""


def test_diff_says_what_can_change_live(write: Write) -> None:
    old = load(write(MINIMAL))
    changes = {change.path: change.live for change in diff(old, load(write(CHANGED)))}
    assert changes == {
        "listen.address": False,
        "log.level": True,
        "log.format": False,
        "limits.max_clients": True,
        "databases.other": False,
        "databases.shop.primary": False,
        "databases.shop.service": False,
        "databases.shop.schema_version": True,
        "databases.shop.pool_size": True,
        "databases.shop.reads.replica_percent": True,
        "databases.shop.dual_write.enabled": True,
    }


def test_a_reload_puts_only_live_keys_in_force(write: Write) -> None:
    old = load(write(MINIMAL))
    kept = keep_restart_keys(old, load(write(CHANGED)))
    assert all(change.live for change in diff(old, kept))
    assert kept.databases.keys() == {"shop"}
    assert kept.databases["shop"].primary == old.databases["shop"].primary
    assert kept.databases["shop"].schema_version == "0001_status"
    assert kept.limits.max_clients == 5


def test_another_login_method_waits_with_all_that_belongs_to_it(write: Write) -> None:
    old = load(write(MINIMAL.replace('"trust"', '"scram-sha-256"\nusers_file = "users.txt"')))
    kept = keep_restart_keys(old, load(write(MINIMAL)))
    assert kept.auth == old.auth

"""Reload: validate and swap, or keep the old configuration and say why."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.admin.reload import Reloader, Users, read
from proxy.config import Settings

TEXT = """
[auth]
method = "scram-sha-256"
users_file = "users.txt"
[databases.shop]
primary = "postgresql://shop@10.0.0.1/shop"
schema_version = "auto"
[log]
level = "info"
"""


class Running:
    """A reloader over files in a directory, and what it applied."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "dualwire.toml"
        self.users_file = directory / "users.txt"
        self.config.write_text(TEXT)
        self.users_file.write_text('"app" "one"\n')
        self.applied: list[tuple[Settings, Users]] = []
        settings, users = read(self.config)
        self.reloader = Reloader(self.config, settings, users, lambda *now: self.applied.append(now))

    def edit(self, before: str, after: str) -> None:
        text = self.config.read_text()
        assert before in text
        self.config.write_text(text.replace(before, after))

    @property
    def level(self) -> str:
        return self.reloader.settings.log.level


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(tmp_path)


@pytest.fixture
async def watched(running: Running) -> AsyncIterator[Running]:
    running.reloader.start()
    # The watch must stand before a test edits a file.
    await asyncio.sleep(0.3)
    yield running
    await running.reloader.stop()


async def until(condition: Callable[[], object], within: float = 8.0) -> None:
    deadline = asyncio.get_running_loop().time() + within
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {within} s"
        await asyncio.sleep(0.02)


async def test_a_live_change_is_applied(running: Running) -> None:
    running.edit('"auto"', '"0001_status"')
    outcome = running.reloader.reload()
    assert (outcome.result, outcome.pending_restart) == ("applied", ())
    ((settings, _users),) = running.applied
    assert settings.databases["shop"].schema_version == "0001_status"
    assert running.reloader.view().totals == {"applied": 1}


async def test_an_invalid_file_changes_nothing_and_says_why(running: Running) -> None:
    running.edit("level", "levle")
    outcome = running.reloader.reload()
    assert outcome.result == "rejected"
    assert "unknown key log.levle" in outcome.error
    assert "did you mean log.level?" in outcome.error
    assert running.applied == []
    assert running.level == "info"


async def test_invalid_users_keep_the_whole_old_configuration(running: Running) -> None:
    running.edit('"info"', '"debug"')
    running.users_file.write_text("broken\n")
    outcome = running.reloader.reload()
    assert outcome.result == "rejected"
    assert "users.txt, line 1" in outcome.error
    assert running.level == "info"


async def test_what_needs_a_restart_is_named_and_keeps_its_value(running: Running) -> None:
    running.edit("10.0.0.1", "10.0.0.9")
    running.edit('"info"', '"debug"')
    outcome = running.reloader.reload()
    assert (outcome.result, outcome.pending_restart) == ("applied", ("databases.shop.primary",))
    assert running.level == "debug"
    assert running.reloader.settings.databases["shop"].primary.host == "10.0.0.1"
    # A later rejection does not forget what still waits; taking the change back does.
    running.edit("level", "levle")
    assert running.reloader.reload().pending_restart == ("databases.shop.primary",)
    running.edit("levle", "level")
    running.edit("10.0.0.9", "10.0.0.1")
    assert running.reloader.reload().pending_restart == ()


async def test_changed_users_are_applied(running: Running) -> None:
    running.users_file.write_text('"app" "two"\n')
    assert running.reloader.reload().result == "applied"
    ((_settings, users),) = running.applied
    assert users["app"].password == "two"


async def test_nothing_changed_applies_nothing(running: Running) -> None:
    assert running.reloader.reload().result == "unchanged"
    assert running.applied == []


async def test_another_login_method_does_not_lock_everyone_out(running: Running) -> None:
    running.edit('method = "scram-sha-256"\nusers_file = "users.txt"', 'method = "trust"')
    running.edit('"info"', '"debug"')
    outcome = running.reloader.reload()
    assert outcome.pending_restart == ("auth.method",)
    ((settings, users),) = running.applied
    assert settings.auth.method == "scram-sha-256"
    assert set(users) == {"app"}


async def test_sighup_reloads(watched: Running) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: watched.reloader.view().result == "unchanged")


async def test_a_changed_file_is_found(watched: Running) -> None:
    watched.edit('"info"', '"debug"')
    await until(lambda: watched.level == "debug")


async def test_a_changed_users_file_is_found(watched: Running) -> None:
    watched.users_file.write_text('"app" "two"\n')
    await until(lambda: watched.applied)


async def test_a_file_replaced_by_renaming_another_is_found(watched: Running) -> None:
    """As editors and configuration management do it."""
    other = watched.config.with_suffix(".new")
    other.write_text(TEXT.replace('"info"', '"debug"'))
    other.rename(watched.config)
    await until(lambda: watched.level == "debug")


async def test_a_file_behind_a_swapped_symlink_is_found(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap."""
    for name, level in (("one", "info"), ("two", "debug")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dualwire.toml").write_text(TEXT.replace('"info"', f'"{level}"'))
        (tmp_path / name / "users.txt").write_text('"app" "one"\n')
    (tmp_path / "data").symlink_to("one")
    config = tmp_path / "dualwire.toml"
    config.symlink_to("data/dualwire.toml")
    (tmp_path / "users.txt").symlink_to("data/users.txt")
    reloader = Reloader(config, *read(config), lambda *_now: None)
    reloader.start()
    try:
        await asyncio.sleep(0.3)
        (tmp_path / "swap").symlink_to("two")
        (tmp_path / "swap").rename(tmp_path / "data")
        await until(lambda: reloader.settings.log.level == "debug")
    finally:
        await reloader.stop()


async def test_several_changes_within_a_moment_are_one_reload(watched: Running) -> None:
    for level in ("debug", "warning", "error"):
        watched.config.write_text(TEXT.replace('"info"', f'"{level}"'))
        watched.reloader.request()
    await until(lambda: watched.level == "error")
    await asyncio.sleep(0.8)
    assert len(watched.applied) == 1


async def test_a_vanished_file_keeps_the_configuration(watched: Running) -> None:
    watched.config.unlink()
    await until(lambda: watched.reloader.view().result == "rejected")
    assert watched.level == "info"
    watched.config.write_text(TEXT.replace('"info"', '"debug"'))
    await until(lambda: watched.level == "debug")

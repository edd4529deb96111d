"""Compiled modules: what runs is reported rightly, and never stands in for sources that have changed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from proxy.build import state

SUFFIX = EXTENSION_SUFFIXES[0]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of the same form, nothing compiled."""
    for folder in ("wire", "session", "sql", "rewrite"):
        tmp_path.joinpath(folder).mkdir()
        tmp_path.joinpath(folder, "__init__.py").write_text("")
    tmp_path.joinpath("wire", "framing.py").write_text("A = 1\n")
    tmp_path.joinpath("stats.py").write_text("B = 1\n")
    return tmp_path


def build(package: Path) -> None:
    """What a build leaves behind."""
    for source in state.modules(package):
        package.joinpath(source).with_suffix(SUFFIX).touch()
    package.joinpath(f"hot__mypyc{SUFFIX}").touch()
    package.joinpath(state.STAMP).write_text(state.digest(package) + "\n")


def test_sources_without_extension_modules_are_pure_python(package: Path) -> None:
    assert state.describe(package) == "pure Python"
    state.refuse_stale(package)


def test_a_fresh_build_runs(package: Path) -> None:
    build(package)
    assert state.describe(package) == "compiled"
    state.refuse_stale(package)


def test_a_module_that_was_added_after_the_build_is_noticed(package: Path) -> None:
    build(package)
    package.joinpath("session", "new.py").write_text("")
    assert state.describe(package) == "partly compiled"
    with pytest.raises(state.StaleBuild):
        state.refuse_stale(package)


@pytest.mark.parametrize("changed", ["wire/framing.py", "stats.py", "sql/quote.py", "rewrite/plan.py"])
def test_a_changed_source_stops_the_import_with_what_to_do(package: Path, changed: str) -> None:
    build(package)
    package.joinpath(changed).write_text("C = 2\n")
    with pytest.raises(state.StaleBuild, match="make clean-compiled"):
        state.refuse_stale(package)


def test_extension_modules_without_a_stamp_are_refused(package: Path) -> None:
    build(package)
    package.joinpath(state.STAMP).unlink()
    with pytest.raises(state.StaleBuild):
        state.refuse_stale(package)


def test_a_build_for_another_interpreter_is_not_ours(package: Path) -> None:
    package.joinpath("wire", "framing.cpython-27-pdp11.so").touch()
    assert state.describe(package) == "pure Python"
    state.refuse_stale(package)


def test_every_module_of_the_session_and_the_wire_may_be_compiled() -> None:
    names = {path.as_posix() for path in state.modules()}
    assert {"wire/framing.py", "session/core.py", "session/replies.py", "stats.py"} <= names


def test_what_is_reported_is_what_was_loaded() -> None:
    said = state.describe()
    for source in state.modules():
        name = ".".join(("proxy", *source.with_suffix("").parts))
        compiled = str(importlib.import_module(name).__file__).endswith(SUFFIX)
        assert compiled == (said == "compiled"), name
    if os.environ.get("DUALWIRE_TEST_COMPILED"):
        assert said == "compiled"


def test_the_command_says_how_it_runs() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "migrator.cli.main", "--version"], check=True, capture_output=True, text=True
    ).stdout
    assert said.startswith("dualwire ")
    assert f"({state.describe()}, Python " in said

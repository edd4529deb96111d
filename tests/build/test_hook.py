"""Wheels of this tree: an installation never fails for want of a compiler, and says so where one was wanted."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not ROOT.joinpath("proxy", "build", "hook.py").is_file(), reason="the sources are not here"
)


def build(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel without isolation: hatchling and mypyc are those of the test environment."""
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)],
        cwd=ROOT,
        env={**os.environ, "DUALWIRE_COMPILE": "auto", **environment},
        capture_output=True,
        text=True,
    )


def only_wheel(directory: Path) -> Path:
    """The one wheel that was built."""
    (wheel,) = directory.glob("*.whl")
    return wheel


def extension_modules(wheel: Path) -> list[str]:
    """What is not Python in it."""
    return [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".so", ".stamp"))]


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no-such-compiler", "there is no C compiler"), ("false", "pure Python, which is slower")],
    ids=["no compiler", "a compiler that fails"],
)
def test_without_a_working_compiler_the_wheel_is_pure_python(
    tmp_path: Path, compiler: str, reason: str
) -> None:
    done = build(tmp_path, CC=compiler)
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout + done.stderr
    wheel = only_wheel(tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert extension_modules(wheel) == []


def test_a_wheel_that_must_be_compiled_is_not_built_without_a_compiler(tmp_path: Path) -> None:
    done = build(tmp_path, CC="no-such-compiler", DUALWIRE_COMPILE="require")
    assert done.returncode != 0
    assert "there is no C compiler" in done.stderr + done.stdout
    assert not list(tmp_path.glob("*.whl"))


def test_a_wheel_that_must_be_pure_python_is(tmp_path: Path) -> None:
    assert build(tmp_path, DUALWIRE_COMPILE="never").returncode == 0
    assert extension_modules(only_wheel(tmp_path)) == []


def test_the_build_itself_is_in_no_wheel(tmp_path: Path) -> None:
    build(tmp_path, DUALWIRE_COMPILE="never")
    names = zipfile.ZipFile(only_wheel(tmp_path)).namelist()
    assert "proxy/build/state.py" in names
    assert "proxy/build/hook.py" not in names
    assert "proxy/build/compile.py" not in names


def test_a_mistyped_wish_is_an_error(tmp_path: Path) -> None:
    done = build(tmp_path, DUALWIRE_COMPILE="yes")
    assert done.returncode != 0
    assert "say auto, never or require" in done.stderr + done.stdout

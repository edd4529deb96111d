"""The build hook: a wheel with compiled modules where that is possible, the same wheel in pure Python where not.

Hatchling loads this file by its path (``pyproject.toml``); it is in no wheel itself. ``DUALWIRE_COMPILE`` is ``auto``
(the default), ``never``, or ``require``, which makes a failure to compile an error. Editable installs are pure Python:
``make compile`` puts extension modules beside the sources.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

REQUIREMENTS = ["mypy[mypyc]>=2.4,<2.5", "setuptools>=77"]
"""Only asked for where they will be used, so that no compiler is needed to install them either."""
NEWEST = (3, 14)
"""The newest Python that this mypyc is known to compile for."""


def mode() -> str:
    """What the one who builds wants."""
    wanted = os.environ.get("DUALWIRE_COMPILE", "auto")
    if wanted not in ("auto", "never", "require"):
        raise ValueError(f"DUALWIRE_COMPILE is {wanted!r}: say auto, never or require")
    return wanted


def obstacle() -> str | None:
    """Why nothing can be compiled here, in words; None if it can be tried."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this is not the ordinary CPython"
    if sys.version_info[:2] > NEWEST:
        return "this Python is newer than the compiler of Python code knows"
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if not command or shutil.which(command[0]) is None:
        return "there is no C compiler"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "the headers of Python are not installed"
    return None


class CompileHook(BuildHookInterface):  # type: ignore[type-arg,unused-ignore]
    """Adds the extension modules to a wheel."""

    def dependencies(self) -> list[str]:
        """What the build needs besides hatchling."""
        return [] if mode() == "never" or obstacle() is not None else list(REQUIREMENTS)

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and let the wheel have what came out."""
        if version == "editable" or mode() == "never":
            return
        output = Path(tempfile.mkdtemp(prefix="dualwire-build-"))
        self._output = output
        reason = obstacle() or self._compile(output)
        if reason is None:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            for path in sorted(path for path in output.rglob("*") if path.is_file()):
                build_data["force_include"][str(path)] = path.relative_to(output).as_posix()
        elif mode() == "require":
            self.finalize(version, build_data, "")
            raise RuntimeError(f"dualwire cannot be compiled: {reason}")
        else:
            self.app.display_warning(f"dualwire is built in pure Python, which is slower: {reason}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what only the build needed."""
        output = getattr(self, "_output", None)
        if output is not None:
            shutil.rmtree(output, ignore_errors=True)

    def _compile(self, output: Path) -> str | None:
        """None, or why it failed. A process of its own, because compilers of all kinds may end theirs."""
        program = Path(self.root, "proxy", "build", "compile.py")
        done = subprocess.run(
            [sys.executable, str(program), self.root, str(output)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            return None
        self.app.display_debug(done.stdout)
        said = [line for line in done.stdout.splitlines() if line.strip()]
        if mode() == "require":
            return "\n".join(said[-30:])
        return said[-1] if said else f"the compiler ended with {done.returncode}"

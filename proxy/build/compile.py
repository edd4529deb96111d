"""Compile the hot path with mypyc into a directory: ``python compile.py SOURCE_TREE OUTPUT``.

Contract: works on a copy, so the tree stays as it is; ``OUTPUT`` then holds the extension modules and the stamp under
the paths that they have in the tree. Any failure is an exit status other than 0 with its reason on standard error.
Run as a program of its own by :mod:`proxy.build.hook`, in an environment that has mypy and setuptools.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path


def build(tree: Path, output: Path) -> None:
    """See the module's docstring."""
    sys.path.insert(0, str(tree))
    from mypyc.build import mypycify
    from setuptools import setup

    from proxy.build import state

    package = tree / "proxy"
    sources = [(Path("proxy") / path).as_posix() for path in state.modules(package)]
    with tempfile.TemporaryDirectory() as scratch:
        # Without the project's own configuration: its mypy plugins are not there, nor are most dependencies.
        shutil.copytree(package, Path(scratch, "proxy"), ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        os.chdir(scratch)
        extensions = mypycify(
            ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", *sources],
            opt_level="3",
            debug_level="0",
            group_name=state.GROUP,
        )
        setup(
            name="dualwire",
            version="0",
            packages=[],
            ext_modules=extensions,
            script_args=["--quiet", "build_ext", "--build-lib", str(output)],
        )
    Path(output, "proxy", state.STAMP).write_text(state.digest(package) + "\n")


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())

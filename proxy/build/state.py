"""Which modules may run compiled, which do, and whether what is compiled still is what the sources say.

Contract: standard library only, and cheap where nothing is compiled, because every import of ``proxy`` asks
:func:`refuse_stale`. Python prefers an extension module to the source beside it, so an edit of a compiled module would
change nothing: instead of that, importing ``proxy`` fails with what to do. A build therefore leaves a stamp beside its
modules: the digest of all sources that went into it.
"""

from __future__ import annotations

import functools
import hashlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parent.parent
STAMP: Final = "compiled.stamp"
"""Beside the modules of ``proxy``: the digest of the sources that the extension modules were made from."""
GROUP: Final = "proxy.hot"
"""All modules share one library, ``proxy/hot__mypyc``, so that calls between them are plain C calls."""

_COMPILED: Final = (
    "wire/*.py",
    "session/*.py",
    "caches.py",
    "stats.py",
    "rewrite/plan.py",
    "sql/kinds.py",
    "sql/splice.py",
)
_COLD: Final = ("__init__.py", "scram.py")
"""What gains nothing: a login is dominated by hashing, which is C already."""
_SOURCES: Final = (*_COMPILED, "sql/*.py", "rewrite/*.py")
"""What compiled code may have inlined a constant of."""


class StaleBuild(ImportError):
    """The compiled modules are not those of the sources beside them."""


def modules(package: Path = PACKAGE) -> list[Path]:
    """The sources that are compiled, relative to the package."""
    found = {path for pattern in _COMPILED for path in package.glob(pattern) if path.name not in _COLD}
    return sorted(path.relative_to(package) for path in found)


def digest(package: Path = PACKAGE) -> str:
    """A digest of the sources that a build depends on."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in _SOURCES for path in package.glob(pattern)}):
        total.update(f"{path.relative_to(package).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def compiled(package: Path = PACKAGE) -> list[Path]:
    """The sources beside which there is an extension module that this interpreter would load instead."""
    suffix = EXTENSION_SUFFIXES[0]
    folders = {package / pattern.rpartition("/")[0] for pattern in _COMPILED}
    found = (path for folder in folders for path in folder.glob(f"*{suffix}"))
    sources = (path.with_name(path.name.removesuffix(suffix) + ".py") for path in found)
    return sorted(source.relative_to(package) for source in sources if "__mypyc" not in source.name)


@functools.cache
def describe(package: Path = PACKAGE) -> str:
    """``compiled``, ``pure Python`` or ``partly compiled``: how the hot path of this process runs."""
    present = compiled(package)
    if not present:
        return "pure Python"
    return "compiled" if set(modules(package)) <= set(present) else "partly compiled"


def refuse_stale(package: Path = PACKAGE) -> None:
    """Raise StaleBuild if extension modules would run in place of sources that have changed since."""
    present = compiled(package)
    if not present:
        return
    stamp = package / STAMP
    if stamp.is_file() and stamp.read_text().strip() == digest(package):
        return
    raise StaleBuild(
        f"the compiled modules of {package} are not those of its sources ({len(present)} of them, such as "
        f"{present[0]}): `make compile` makes them anew, `make clean-compiled` removes them; "
        "an installed package is repaired by installing it again"
    )

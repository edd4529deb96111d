"""Fetches a suite's source distribution and makes a virtual environment for it.

Everything is kept in a cache directory outside of the tree (`cache_directory`), under names that change with what is in
them: a second run downloads nothing. pip does the fetching, from whatever index it is configured for; an archive whose
digest is not the one that was reviewed is refused.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CACHE = "DUALWIRE_CONFORMANCE_CACHE"


class SuiteError(Exception):
    """A suite could not be fetched, started or read; the text says what went wrong."""


@dataclass(frozen=True, slots=True)
class Sdist:
    """A source distribution on the package index, by its exact version and the SHA-256 of its archive.

    ``variables`` are added to the environment while pip asks it for its metadata.
    """

    name: str
    version: str
    sha256: str
    variables: tuple[tuple[str, str], ...] = ()


def cache_directory() -> Path:
    """Where suites and their environments are kept: ``DUALWIRE_CONFORMANCE_CACHE``, else the user's cache."""
    given = os.environ.get(CACHE)
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dualwire" / "conformance"


def fetch(sdist: Sdist) -> Path:
    """The unpacked source, downloaded if it is not in the cache."""
    place = cache_directory() / "sources" / f"{sdist.name}-{sdist.version}-{sdist.sha256[:12]}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        directory = Path(scratch)
        archive = _download(sdist, directory)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != sdist.sha256:
            raise SuiteError(
                f"{archive.name} has the digest {found}, not the reviewed {sdist.sha256}; "
                "if it was published anew, review it and correct the digest"
            )
        with tarfile.open(archive) as packed:
            packed.extractall(directory / "unpacked", filter="data")
        (unpacked,) = (directory / "unpacked").iterdir()
        unpacked.rename(place)
    return place


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of a virtual environment with these requirements and nothing else."""
    digest = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    place = cache_directory() / "environments" / f"{name}-{digest}"
    python = place / "bin" / "python"
    ready = place / ".ready"
    if ready.exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(place)], "make a virtual environment")
    _run(
        [*_pip(python), "install", "--quiet", *requirements],
        f"install what the suite {name} needs",
    )
    ready.touch()
    return python


def _download(sdist: Sdist, directory: Path) -> Path:
    # pip asks a source distribution for its metadata before it saves it, so its build requirements come along for a
    # moment, into an environment of pip's own.
    _run(
        [
            *_pip(Path(sys.executable)),
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            sdist.name,
            "--dest",
            str(directory),
            f"{sdist.name}=={sdist.version}",
        ],
        f"fetch {sdist.name} {sdist.version}",
        dict(sdist.variables),
    )
    archives = list(directory.glob("*.tar.gz"))
    if len(archives) != 1:
        raise SuiteError(
            f"pip left {len(archives)} archives for {sdist.name} {sdist.version}, one .tar.gz was expected"
        )
    return archives[0]


def _pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]


def _run(command: list[str], purpose: str, variables: dict[str, str] | None = None) -> None:
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SuiteError(f"could not {purpose}:\n{done.stdout}{done.stderr}".rstrip())

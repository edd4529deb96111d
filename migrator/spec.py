"""Reads a migration file: pgroll's format, YAML or JSON. The migration's name is the file's stem.

Every mistake is reported with the file, the path inside it (``operations[0].alter_column.foo``) and what is known
there. Nothing here talks to a database.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import ValidationError

from migrator.errors import Refused, Usage
from migrator.operations import KNOWN_TO_PGROLL, REGISTRY, Operation
from migrator.operations.common import Strict
from proxy.rewrite.model import Guard

TOP_KEYS = {"operations", "name", "version_schema", "guard", "compat"}
MAX_FILE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Migration:
    """A parsed migration file."""

    name: str
    operations: tuple[Operation, ...]
    document: dict[str, Any]
    """The file's content, for the control schema."""
    guard: Guard | None = None
    """What the file says about it; None where it says nothing, which means ``sync``."""
    compat: bool = False
    """Old clients are served after closed too."""

    @property
    def checksum(self) -> str:
        """A digest of the content that ignores formatting and comments."""
        text = json.dumps(self.document["operations"], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load(path: Path) -> Migration:
    """Read and validate a migration file.

    Raises:
        Usage: the file cannot be read.
        Refused: it is not a migration that can be run.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Usage(f"cannot read migration {path}: {error.strerror or error}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise Refused(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    return parse(path.stem, str(path), raw)


def parse(name: str, label: str, raw: bytes) -> Migration:
    """Parse the content of a migration file; ``label`` is what messages call it."""
    if not name or len(name.encode()) > 63:
        raise Refused(f"{label}: a migration's name (the file's stem) has 1 to 63 bytes")
    try:
        text = raw.decode()
        document = json.loads(text) if label.endswith(".json") else yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise Refused(f"{label}: not UTF-8 ({error})") from error
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise Refused(f"{label}: cannot be parsed", detail=str(error)) from error
    if not isinstance(document, dict):
        raise Refused(f"{label}: a migration is a mapping with the key `operations`")
    for key in document:
        if key not in TOP_KEYS:
            raise Refused(f"{label}: unknown key `{key}`", hint=f"Known keys: {', '.join(sorted(TOP_KEYS))}.")
    guard = document.get("guard")
    # YAML reads a bare off as false.
    guard = "off" if guard is False else guard
    if guard is not None and guard not in get_args(Guard):
        raise Refused(f"{label}: guard: unknown value {guard!r}", hint="Known values: sync, check, off.")
    compat = document.get("compat", False)
    if not isinstance(compat, bool):
        raise Refused(f"{label}: compat: true or false is needed, not {compat!r}")
    operations = document.get("operations")
    if not isinstance(operations, list) or not operations:
        raise Refused(f"{label}: `operations` must be a list with at least one operation")
    parsed = tuple(_operation(label, index, item) for index, item in enumerate(operations))
    _combinations(label, operations)
    return Migration(name, parsed, document, cast(Guard | None, guard), compat)


def from_document(name: str, document: dict[str, Any]) -> Migration:
    """The migration as the control schema keeps it."""
    return parse(name, f"{name}.json", json.dumps(document).encode())


def _operation(label: str, index: int, item: Any) -> Operation:
    path = f"operations[{index}]"
    if not isinstance(item, dict) or len(item) != 1:
        raise Refused(
            f"{label}: {path} must be a mapping with exactly one operation",
            hint=f"Known operations: {', '.join(sorted(REGISTRY))}.",
        )
    [(kind, body)] = item.items()
    if kind in KNOWN_TO_PGROLL:
        raise Refused(
            f"{label}: {path}.{kind}: the operation `{kind}` is not supported yet",
            hint=f"Supported operations: {', '.join(sorted(REGISTRY))}.",
        )
    if kind not in REGISTRY:
        raise Refused(
            f"{label}: {path}.{kind}: unknown operation `{kind}`",
            hint=f"Known operations: {', '.join(sorted(REGISTRY))}.",
        )
    model = REGISTRY[kind]
    try:
        return cast(Operation, model.model_validate(body))
    except ValidationError as error:
        raise _explain(label, f"{path}.{kind}", model, error) from error


def _explain(label: str, path: str, model: type[Strict], error: ValidationError) -> Refused:
    problems = []
    known: list[str] = []
    for item in error.errors():
        inner = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append(f"{path}{inner}: unknown key")
            known = _known_keys(model, item["loc"][:-1])
        elif item["type"] == "missing":
            problems.append(f"{path}{inner}: missing")
        else:
            problems.append(f"{path}{inner}: {item['msg']}")
    keys = known or _known_keys(model, ())
    return Refused(f"{label}: " + "; ".join(problems), hint=f"Known keys there: {', '.join(keys)}.")


def _known_keys(model: type[Strict], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the model at a location inside an operation."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        fields = {(f.alias or n): f for n, f in current.model_fields.items()}
        if part not in fields:
            break
        for candidate in _models(fields[part].annotation):
            current = candidate
            break
        else:
            break
    return sorted(f.alias or n for n, f in current.model_fields.items())


def _models(annotation: Any) -> list[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models(argument)]


def _combinations(label: str, operations: list[dict[str, Any]]) -> None:
    """pgroll's rule: ``sql`` stands alone unless it runs on completion. ``replace_table`` does not mix with others."""
    for index, item in enumerate(operations):
        if "replace_table" in item and any("replace_table" not in other for other in operations):
            raise Refused(
                f"{label}: operations[{index}].replace_table cannot stand together with other operations",
                hint="Put it into a migration of its own; several replace_table may stand together.",
            )
        body = item.get("sql")
        if body is not None and not body.get("onComplete", False) and len(operations) > 1:
            raise Refused(
                f"{label}: operations[{index}].sql cannot stand together with other operations",
                hint="Put it into a migration of its own, or set `onComplete: true`.",
            )

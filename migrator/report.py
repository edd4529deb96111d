"""A design as ``plan`` shows it: phases with their forward and backward SQL, estimates, findings and waivers."""

from __future__ import annotations

from typing import Any

from migrator.design import Design
from migrator.phases.backfill import update_statement
from migrator.phases.expand import forward_of
from migrator.phases.rollback import backward_of
from migrator.progress import duration
from migrator.replace.steps import touch_statement
from migrator.replace.swap import forward_of as replaced_swap

ROWS_PER_SECOND = 60_000
"""A rough figure for one mirrored column on ordinary hardware; only for the estimate."""


def document(design: Design) -> dict[str, Any]:
    """The plan as one JSON document."""
    rows = sum(t.rows for t in design.mirrored) + sum(t.rows for t in design.replaces)
    size = sum(t.bytes for t in design.mirrored) + sum(t.bytes for t in design.replaces)
    return {
        "migration": design.migration,
        "parent": design.parent,
        "schema": design.schema_name,
        "guard": design.guard,
        "tables": tables(design),
        "compat": design.compat,
        "phases": phases(design),
        "estimate": {
            "rows": rows,
            "table_bytes": size,
            "backfill_seconds": round(rows / ROWS_PER_SECOND, 1),
            "wal_bytes": size * 2,
            "bloat_bytes": size,
        },
        "findings": [f.model_dump() for f in design.findings],
        "waivers": [f.message for f in design.findings if f.waiver],
        "ok": not design.errors(),
    }


def tables(design: Design) -> list[dict[str, Any]]:
    """How the writes of each table are carried over."""
    return [
        {
            "table": t.label,
            "carried_over_by": "nothing to carry over"
            if not t.mark
            else f"sidecars, guard {t.guard}"
            if t.inline
            else "guard sync alone (its own triggers or rules may overrule a statement)",
            "guard": t.guard if t.mark else None,
            "inline": t.inline,
            "at_close": [{"column": c.label, "kind": c.kind, "name": c.name} for c in t.at_close],
            "copy_views": [f"dualwire.{name}" for name in (t.copy_old, t.copy_new) if name is not None],
        }
        for t in design.tables
    ] + [
        {
            "table": r.label,
            "carried_over_by": "triggers, from either of the two tables to the other",
            "guard": None,
            "inline": False,
            "at_close": [],
            "copy_views": [],
        }
        for r in design.replaces
    ]


def phases(design: Design) -> list[dict[str, Any]]:
    """Every phase with what it does and undoes."""
    expand = forward_of(design)
    batches = [update_statement(t, "<key range>") for t in design.mirrored]
    batches += [touch_statement(r, "<key range>") for r in design.replaces]
    builds = [i.create for t in design.tables for i in t.indexes]
    builds += [s for r in design.replaces for s in (*(i.sql for i in r.indexes), *r.keys, *r.validate_keys)]
    over = [s for r in design.replaces for s in (*r.unmirror, *r.flip, *r.forward_flipped)]
    back = [s for r in reversed(design.replaces) for s in (*r.unmirror, *r.flip_back, *r.forward)]
    validate = [s for t in design.tables for s in t.native_validate]
    arm = [s for t in design.tables for s in t.arm]
    strengthen = [s for t in design.tables for s in t.strengthen]
    backward = [*(s for t in design.tables for s in t.disarm), *backward_of(design)]
    outlive = [s for t in design.tables for s in t.compat]
    late = [s for t in design.tables for c in t.at_close for s in [c.build, *c.validate_]]
    outlive += [s for r in design.replaces if design.compat for s in r.compat]
    relax = [s for t in design.tables for s in t.relax]
    strict = [s for t in design.tables for s in [*t.strict, *t.validate_strict]]
    swap = [s for t in design.tables for s in [*t.swap, *t.cleanup]] + design.epilogue
    strict += [s for r in design.replaces for k in r.incoming for s in (k.create, k.validate_sql) if s]
    swap += [s for r in design.replaces for s in replaced_swap(r)]
    after = [s.up for s in design.sql if s.on_complete]
    return [
        {"phase": "prepared", "does": "publish the frozen column lists", "forward": [], "backward": []},
        {"phase": "expanded", "does": "add the new shape", "forward": expand, "backward": backward},
        {
            "phase": "backfilled",
            "does": "fill the new shape in batches, build its indexes",
            "forward": [*arm, *batches, *strengthen, *builds, *validate],
            "backward": [],
        },
        {
            "phase": "verified",
            "does": "compare every row, serve the new version",
            "forward": [],
            "backward": [],
        },
        {
            "phase": "cutover",
            "does": "send auto clients to the new version",
            "forward": over,
            "backward": back,
        },
        {
            "phase": "closed",
            "does": "serve old clients without the old columns (no rollback from here on)"
            if design.compat
            else "end the old version (no rollback from here on)",
            "forward": [*late, *outlive, *relax, *strict],
            "backward": None,
        },
        {"phase": "completed", "does": "swap under a hold", "forward": [*swap, *after], "backward": None},
    ]


def text(design: Design) -> str:
    """The plan for people."""
    plan = document(design)
    lines = [f"migration {design.migration} (after {design.parent}), guard {design.guard}"]
    lines += [f"  {t['table']}: {t['carried_over_by']}" for t in plan["tables"]]
    lines.append("")
    for phase in plan["phases"]:
        lines.append(f"{phase['phase']}: {phase['does']}")
        lines += [f"    {_indent(s)};" for s in phase["forward"]]
        if phase["backward"]:
            lines.append("  backward:")
            lines += [f"    {_indent(s)};" for s in phase["backward"]]
    estimate = plan["estimate"]
    lines += [
        "",
        f"estimate: {estimate['rows']} rows ({estimate['table_bytes'] / 2**20:.1f} MiB), backfill about"
        f" {duration(estimate['backfill_seconds'])} unthrottled, about {estimate['wal_bytes'] / 2**20:.1f} MiB WAL",
        "",
        findings_text(design),
    ]
    return "\n".join(lines)


def findings_text(design: Design) -> str:
    """Findings, the worst first, then what may fail meanwhile."""
    if not design.findings:
        return "lint: no findings"
    order = {"error": 0, "warning": 1, "info": 2}
    lines = ["lint:"]
    for finding in sorted(design.findings, key=lambda f: order[f.severity]):
        lines.append(f"  {finding.severity}: {finding.message}")
        if finding.hint:
            lines.append(f"      {finding.hint}")
    waivers = [f.message for f in design.findings if f.waiver]
    if waivers:
        lines.append("statements that may fail during this migration though they would succeed without it:")
        lines += [f"  - {w}" for w in waivers]
    return "\n".join(lines)


def _indent(statement: str) -> str:
    return statement.replace("\n", "\n    ")

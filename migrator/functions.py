"""SQL functions of a migration: one for each mirrored column, and for each direction whether it works at all.

None of them ever raises. An expression that is proved total becomes an SQL-standard body, bound at creation and
inlined by the planner; any other runs in plpgsql, where an error gives NULL. Settings that a result depends on are
pinned. Parameters are used by number, so no column's name can clash with anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from migrator.catalog import CatalogColumn
from migrator.design import DirectionDesign, MirrorDesign
from migrator.expressions import parameters, render
from migrator.sqltext import conjunction, dollar, ident, literal

PINNED = (
    "SET TimeZone = 'UTC' SET DateStyle = 'ISO, MDY' SET IntervalStyle = 'postgres'"
    " SET extra_float_digits = 1 SET bytea_output = 'hex' SET lc_time = 'C' SET lc_numeric = 'C'"
    " SET lc_monetary = 'C'"
)

Types = Mapping[str, CatalogColumn]


def _arguments(sources: Sequence[str], types: Types) -> str:
    return ", ".join(f"{ident(s)} {types[s].type}" for s in sources)


def settings_for(paths: Sequence[Sequence[str]], pinned: bool) -> str:
    """The settings of a function: a search_path, and what a result may depend on."""
    schemas = list(dict.fromkeys(s for path in paths for s in path))
    path = ", ".join(["pg_catalog", *map(ident, schemas), "pg_temp"])
    return f"SET search_path = {path}" + (f" {PINNED}" if pinned else "")


def volatility_of(values: Sequence[str]) -> str:
    """What a function made of expressions of these volatilities is declared as."""
    return "VOLATILE" if "volatile" in values else "IMMUTABLE"


def mirror_function(mirror: MirrorDesign, types: Types) -> list[str]:
    """The function that gives the mirror's value."""
    value, target = mirror.value, types[mirror.target]
    head = (
        f"CREATE OR REPLACE FUNCTION {mirror.function}({_arguments(value.sources, types)})"
        f" RETURNS {target.type}"
    )
    kind = volatility_of([value.volatility])
    if value.total and value.volatility != "pinned" and not value.path:
        body = f"{head} LANGUAGE sql {kind} PARALLEL SAFE RETURN ({parameters(value.template)}\n)"
    else:
        text = "\n".join(
            [
                f"DECLARE dualwire_result {target.type_full};",
                "BEGIN",
                f"    dualwire_result := ({parameters(value.template)}\n);",
                "    RETURN dualwire_result;",
                "EXCEPTION WHEN OTHERS THEN",
                "    RETURN NULL;",
                "END",
            ]
        )
        settings = settings_for([value.path], value.volatility == "pinned")
        body = f"{head} LANGUAGE plpgsql {kind} {settings} AS {dollar(text)}"
    return [body, f"GRANT EXECUTE ON FUNCTION {mirror.function} TO PUBLIC"]


def ok_functions(direction: DirectionDesign, types: Types) -> list[str]:
    """The function that tells whether a row can be carried over, and the one that says why not."""
    if direction.ok is None or direction.why is None:
        return []
    arguments = _arguments(direction.ok_sources, types)
    place = {s: f"${i + 1}" for i, s in enumerate(direction.ok_sources)}
    declares, assigns, values = [], [], dict(place)
    for index, mirror in enumerate(direction.mirrors):
        if mirror.value.volatility == "volatile":
            continue
        variable = f"dualwire_{index}"
        declares.append(f"    {variable} {types[mirror.target].type_full};")
        text = render(mirror.value.template, [place[s] for s in mirror.value.sources])
        assigns.append(f"    {variable} := ({text}\n);")
        values[mirror.target] = variable
    checks = [c for c in direction.constraints if c.column in values]
    conditions = [c.holds(values) for c in checks]
    paths = [m.value.path for m in direction.mirrors] + [c.condition.path for c in checks]
    kinds: list[str] = [m.value.volatility for m in direction.reproducible]
    kinds += [c.condition.volatility for c in checks]
    settings = settings_for(paths, "pinned" in kinds)
    kind = volatility_of(kinds)
    ok_head = f"CREATE OR REPLACE FUNCTION {direction.ok}({arguments}) RETURNS boolean"
    simple = all(m.value.inline for m in direction.mirrors) and all(c.condition.inline for c in checks)
    declare = ["DECLARE", *declares] if declares else []
    ok = [
        *declare,
        "BEGIN",
        *assigns,
        f"    RETURN {conjunction(conditions)};",
        "EXCEPTION WHEN OTHERS THEN",
        "    RETURN false;",
        "END",
    ]
    why = [*declare, "BEGIN", *assigns]
    for check, condition in zip(checks, conditions, strict=True):
        said = (
            f"column {check.label} would be NULL"
            if check.kind == "not_null"
            else f"constraint {check.name} does not hold"
        )
        why += [f"    IF NOT ({condition}) THEN", f"        RETURN {literal(said)};", "    END IF;"]
    why += ["    RETURN NULL;", "EXCEPTION WHEN OTHERS THEN", "    RETURN SQLERRM;", "END"]
    if simple:
        inlined = dict(place)
        for mirror in direction.mirrors:
            text = render(mirror.value.template, [place[s] for s in mirror.value.sources])
            inlined[mirror.target] = f"({text}\n)"
        whole = conjunction([c.holds(inlined) for c in checks])
        ok_body = f"{ok_head} LANGUAGE sql {kind} PARALLEL SAFE RETURN ({whole})"
    else:
        ok_body = f"{ok_head} LANGUAGE plpgsql {kind} {settings} AS {dollar(chr(10).join(ok))}"
    return [
        ok_body,
        f"GRANT EXECUTE ON FUNCTION {direction.ok} TO PUBLIC",
        f"CREATE OR REPLACE FUNCTION {direction.why}({arguments}) RETURNS text LANGUAGE plpgsql {kind}"
        f" {settings} AS {dollar(chr(10).join(why))}",
        f"GRANT EXECUTE ON FUNCTION {direction.why} TO PUBLIC",
    ]


def drop_functions(direction: DirectionDesign) -> list[str]:
    """What removes them again."""
    made = [m.function for m in direction.mirrors]
    made += [f for f in (direction.ok, direction.why) if f is not None]
    return [f"DROP FUNCTION IF EXISTS {name}" for name in made]

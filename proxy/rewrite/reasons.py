"""Why a plan is what it is: the whole vocabulary of ``Plan.reason``, fit for a metric label.

Ordered from the weakest to the strongest: where several hold for one text, the last one is told.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """See the module."""

    NO_RULE = "no_rule"
    """No table of the routing state is named."""
    PASSED = "passed"
    """A table of the routing state is named, but the text is right as it stands."""
    EXPAND_STAR = "expand_star"
    """``*`` or a missing column list was spelled out, or a whole row was."""
    TRANSLATED = "translated"
    """Names of the version were turned into physical ones."""
    VIRTUAL_READ = "virtual_read"
    """Columns that only the version has are computed from the table's."""
    DUAL_WRITE = "dual_write"
    """The text writes both shapes."""
    VIRTUAL_WRITE = "virtual_write"
    """What is written to columns that only the version has becomes values of the table's columns."""
    COPY_VIEW = "copy_view"
    """COPY goes into a view with the version's columns, which writes both shapes."""
    UNPARSED = "unparsed"
    """Could not be parsed; sent as it is."""
    GUARD_DUAL_WRITE_OFF = "guard_dual_write_off"
    """Dual writes are switched off in this sidecar (``dual_write.enabled``)."""
    GUARD_VOLATILE_EXPRESSION = "guard_volatile_expression"
    """An expression given to a mirrored column may not be written down twice, and there is no place for it once."""
    GUARD_VOLATILE_DEFAULT = "guard_volatile_default"
    """A mirrored column is left to a default that gives another value each time it is asked."""
    GUARD_COMPUTED_COLUMN = "guard_computed_column"
    """A mirrored column is an identity or generated one: only the server knows its value."""
    GUARD_MULTI_ASSIGNMENT = "guard_multi_assignment"
    """A mirrored column is assigned together with others: ``SET (a, b) = ...``."""
    GUARD_SUBSCRIPT = "guard_subscript"
    """A part of a mirrored column (a subscript or a field) is assigned."""
    GUARD_INSERT_SELECT = "guard_insert_select"
    """The rows of an INSERT come from a query whose columns cannot be told or cast in advance."""
    GUARD_COPY = "guard_copy"
    """The rows of COPY are not looked into."""
    GUARD_BEFORE_TRIGGER = "guard_before_trigger"
    """Triggers of the table may overrule what a statement writes, so only after them the mirrors are known."""
    GUARD_CODE = "guard_code"
    """DO, CALL or a function's body that names the table: it is not looked into."""
    GUARD_PREPARE = "guard_prepare"
    """SQL's PREPARE: what it makes may be executed when the columns of the other shape are gone."""
    GUARD_BREAKER = "guard_breaker"
    """Too many rewritten writes of the table failed by what was added: until the next epoch none is rewritten."""
    GUARD_OTHER = "guard_other"
    """Anything else that cannot be written in both shapes."""
    GUARD_UNPARSED = "guard_unparsed"
    """Too long or too deep to parse, and it names the table."""
    REFUSED_GUARD_OFF = "refused_guard_off"
    """The guard would have to do it, and it is off."""
    REFUSED_AMBIGUOUS = "refused_ambiguous"
    """A name may mean a column of the table or another one: only the server knows."""
    REFUSED_UNDEFINED_COLUMN = "refused_undefined_column"
    """The version has no such column, though the table has one of that name."""
    REFUSED_STATEMENT = "refused_statement"
    """A kind of statement that is not translated for this version."""
    REFUSED_CONSTRUCT = "refused_construct"
    """A construct inside a statement that is not translated for this version."""
    REFUSED_DDL = "refused_ddl"
    """DDL on a table in migration, or on what would depend on its physical columns."""
    REFUSED_UNPARSED = "refused_unparsed"
    """Too long or too deep to parse, and its names would have to be translated."""
    REFUSED_BY_SERVER = "refused_by_server"
    """The server rejects the rewritten text, or it would give another result, and no guard can do the work."""
    INTERNAL_ERROR = "internal_error"
    """A bug here; the statement was treated like one that cannot be parsed."""


_RANK = {reason: rank for rank, reason in enumerate(Reason)}


def strongest(reasons: list[Reason]) -> Reason:
    """The reason to tell of several."""
    return max(reasons, key=_RANK.__getitem__, default=Reason.PASSED)

"""Which built-in functions are known to be harmless. Whatever is not listed here counts as able to do
anything.

A name is trusted unqualified or in ``pg_catalog``: an app that puts its own ``lower`` before the built-in one
in its search_path, and lets it write, is outside of what can be proved from the text (a replica would refuse
the write).
"""

from __future__ import annotations

from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


AGGREGATES = _words(
    """
    any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp cume_dist
    dense_rank every first_value grouping json_agg json_agg_strict json_object_agg json_objectagg
    json_arrayagg jsonb_agg jsonb_agg_strict jsonb_object_agg lag last_value lead max min mode nth_value ntile
    percent_rank percentile_cont percentile_disc range_agg range_intersect_agg rank regr_avgx regr_avgy
    regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy row_number stddev stddev_pop
    stddev_samp string_agg sum var_pop var_samp variance xmlagg
    """
)
"""Aggregates and window functions."""

REPEATABLE = _words(
    """
    abs acos acosd age array_append array_cat array_dims array_fill array_length array_lower array_ndims
    array_position array_positions array_prepend array_remove array_replace array_reverse array_sort
    array_to_json array_to_string array_to_tsvector array_upper ascii asin asind atan atan2 atan2d atand
    bit_count bit_length broadcast btrim cardinality casefold cbrt ceil ceiling char_length character_length
    chr coalesce concat concat_ws convert convert_from convert_to cos cosd cosh cot cotd current_date
    date_add date_bin date_part date_subtract date_trunc decode degrees div encode erf erfc exp extract
    factorial family floor format gamma gcd get_bit get_byte greatest height host hostmask inet_merge
    inet_same_family initcap isempty isfinite json_array json_array_elements json_array_elements_text
    json_array_length json_build_array json_build_object json_each json_each_text json_exists
    json_extract_path json_extract_path_text json_object json_object_keys json_query json_scalar
    json_serialize json_strip_nulls json_to_record json_to_recordset json_typeof json_value
    jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object
    jsonb_concat jsonb_contained jsonb_contains jsonb_each jsonb_each_text jsonb_exists jsonb_exists_all
    jsonb_exists_any jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys
    jsonb_path_exists jsonb_path_exists_tz jsonb_path_match jsonb_path_match_tz jsonb_path_query
    jsonb_path_query_array jsonb_path_query_first jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls
    jsonb_to_record jsonb_to_recordset jsonb_typeof justify_days justify_hours justify_interval lcm least left
    length lgamma ln localtime localtimestamp log log10 lower lower_inc lower_inf lpad ltrim make_date
    make_interval make_time make_timestamp make_timestamptz masklen md5 min_scale mod multirange netmask
    network normalize now nullif num_nonnulls num_nulls numnode octet_length overlaps overlay parse_ident
    phraseto_tsquery pi plainto_tsquery position power querytree quote_ident quote_literal quote_nullable
    radians range_merge regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace
    regexp_split_to_array regexp_split_to_table regexp_substr repeat replace reverse right round row_to_json
    rpad rtrim scale set_bit set_byte set_masklen setweight sha224 sha256 sha384 sha512 sign sin sind sinh
    split_part sqrt starts_with statement_timestamp string_to_array string_to_table strip strpos substr
    substring tan tand tanh text timestamptz timezone to_char to_date to_hex to_bin to_oct to_json to_jsonb
    to_number to_timestamp to_tsquery to_tsvector transaction_timestamp translate trim trim_array trim_scale
    trunc ts_delete ts_filter ts_headline ts_rank ts_rank_cd ts_rewrite tsquery_phrase tsvector_to_array
    unistr unnest upper upper_inc upper_inf websearch_to_tsquery width_bucket xml_is_well_formed xmlcomment
    xmlconcat xpath xpath_exists int4range int8range numrange tsrange tstzrange daterange int4multirange
    int8multirange nummultirange tsmultirange tstzmultirange datemultirange generate_series
    generate_subscripts
    """
)
"""Immutable and stable functions: two calls in one statement give the same."""

READ_SAFE = (
    AGGREGATES
    | REPEATABLE
    | frozenset({"clock_timestamp", "gen_random_uuid", "timeofday", "uuidv4", "uuidv7"})
)
"""Functions that a proved READ may call: they leave no trace, and a replica may answer them."""

SESSION_STATE = frozenset(
    {
        "pg_advisory_lock",
        "pg_advisory_lock_shared",
        "pg_try_advisory_lock",
        "pg_try_advisory_lock_shared",
        "set_config",
    }
)
"""Functions that leave state behind in the server session (``set_config`` unless its third argument is true)."""


def foreign_operator(expression: dict[str, Any]) -> bool:
    """Whether an A_Expr's operator is written with a schema other than pg_catalog."""
    name = expression["name"]
    return len(name) > 1 and name[0]["String"].get("sval") != "pg_catalog"


def plain_name(funcname: list[dict[str, dict[str, str]]]) -> str | None:
    """A function's name where it stands unqualified or in pg_catalog, else None."""
    if len(funcname) == 1:
        return funcname[0]["String"].get("sval", "")
    if len(funcname) == 2 and funcname[0]["String"].get("sval") == "pg_catalog":
        return funcname[1]["String"].get("sval", "")
    return None

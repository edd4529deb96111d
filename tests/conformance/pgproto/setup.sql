-- What the scripts find and none of them changes, made once.
GRANT USAGE ON SCHEMA public TO pgproto_role;
CREATE TYPE level AS ENUM ('low', 'high');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text);
DO $do$
BEGIN
    EXECUTE 'CREATE TABLE wide ('
        || (SELECT string_agg('column_' || n || ' int', ', ') FROM generate_series(1, 1200) AS n) || ')';
    EXECUTE 'INSERT INTO wide SELECT ' || (SELECT string_agg(n::text, ', ') FROM generate_series(1, 1200) AS n);
END
$do$;
CREATE FUNCTION shout(level text, words text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    CASE level
        WHEN 'debug' THEN RAISE DEBUG '%', words;
        WHEN 'log' THEN RAISE LOG '%', words;
        WHEN 'info' THEN RAISE INFO '%', words;
        WHEN 'notice' THEN RAISE NOTICE '%', words;
        WHEN 'warning' THEN RAISE WARNING '%', words USING DETAIL = 'a detail', HINT = 'a hint';
        ELSE RAISE EXCEPTION '%', words USING ERRCODE = 'P9999', DETAIL = 'a detail', HINT = 'a hint',
            TABLE = 't', COLUMN = 'name', CONSTRAINT = 'none', DATATYPE = 'text', SCHEMA = 'public';
    END CASE;
    RETURN level;
END
$$;
CREATE FUNCTION in_tokyo() RETURNS text LANGUAGE sql SET TimeZone = 'Asia/Tokyo' AS
    $$ SELECT current_setting('TimeZone') $$;
CREATE PROCEDURE commits(start int) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO t VALUES (start, 'first');
    COMMIT;
    INSERT INTO t VALUES (start + 1, 'second');
    ROLLBACK;
    INSERT INTO t VALUES (start + 2, 'third');
END
$$;
CREATE PROCEDURE doubles(number int, INOUT twice int) LANGUAGE sql AS $$ SELECT 2 * number $$;

-- The control schema. Applied by `dualwire init`; every statement may be run again.
-- Applications and sidecars reach it only through the SECURITY DEFINER functions at the end.

CREATE SCHEMA IF NOT EXISTS dualwire;
GRANT USAGE ON SCHEMA dualwire TO PUBLIC;

CREATE TABLE IF NOT EXISTS dualwire.version (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    version int NOT NULL,
    installed_at timestamptz NOT NULL DEFAULT now()
);

-- An advisory lock dies with its connection; this token tells a migrator that another one has taken over.
CREATE TABLE IF NOT EXISTS dualwire.fence (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    token bigint NOT NULL DEFAULT 0,
    holder text NOT NULL DEFAULT ''
);
INSERT INTO dualwire.fence DEFAULT VALUES ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS dualwire.migration (
    id int PRIMARY KEY,
    name text NOT NULL,
    parent text NOT NULL,
    schema_name text NOT NULL,
    checksum text NOT NULL,
    spec jsonb NOT NULL,
    design jsonb,
    phase text NOT NULL CHECK (phase IN ('planned', 'prepared', 'expanded', 'backfilled', 'verified', 'cutover',
                                         'closed', 'completed', 'rolled_back')),
    paused boolean NOT NULL DEFAULT false,
    catalog jsonb,                       -- what the migrated tables looked like after the last step
    verified_epoch bigint,               -- the epoch under which the last clean verification ran
    verified_at timestamptz,
    cutover_at timestamptz,              -- when all of auto went over
    started_at timestamptz NOT NULL DEFAULT now(),
    phase_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
CREATE UNIQUE INDEX IF NOT EXISTS migration_one_active ON dualwire.migration ((true))
    WHERE phase NOT IN ('completed', 'rolled_back');
CREATE UNIQUE INDEX IF NOT EXISTS migration_name ON dualwire.migration (name) WHERE phase <> 'rolled_back';

CREATE TABLE IF NOT EXISTS dualwire.step (
    migration int NOT NULL REFERENCES dualwire.migration ON DELETE CASCADE,
    name text NOT NULL,
    state text NOT NULL CHECK (state IN ('intent', 'done')),
    statements text[] NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    PRIMARY KEY (migration, name)
);

CREATE TABLE IF NOT EXISTS dualwire.routing (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    epoch bigint NOT NULL,
    epoch_id text NOT NULL,
    timeline int NOT NULL,
    revision bigint NOT NULL,
    state jsonb NOT NULL,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO dualwire.routing (epoch, epoch_id, timeline, revision, state)
VALUES (1, gen_random_uuid()::text, (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()), 1,
        '{"format": 2, "migration": null, "phase": null, "old": "base", "new": null, "serves_old": true,
          "serves_new": false, "auto": "old", "percent": 0, "dual_write": false, "tables": [],
          "versions": ["base"], "hold": null}')
ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS dualwire.sidecar (
    id text PRIMARY KEY,
    secret_hash bytea NOT NULL,
    service text NOT NULL,
    speaks text NOT NULL,
    info jsonb NOT NULL DEFAULT '{}',
    epoch bigint NOT NULL DEFAULT 0,     -- acknowledged: no session acts under an older one
    epoch_id text NOT NULL DEFAULT '',
    revision bigint NOT NULL DEFAULT 0,  -- applied
    lease_until timestamptz NOT NULL,
    hold_id bigint,
    held boolean NOT NULL DEFAULT false,
    stats jsonb NOT NULL DEFAULT '{}',
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS dualwire.backend (
    sidecar text NOT NULL REFERENCES dualwire.sidecar ON DELETE CASCADE,
    pid int NOT NULL,
    backend_start timestamptz,
    PRIMARY KEY (sidecar, pid)
);

CREATE TABLE IF NOT EXISTS dualwire.backfill (
    migration int NOT NULL REFERENCES dualwire.migration ON DELETE CASCADE,
    table_name text NOT NULL,
    position text[],                     -- the last key that is done, as text; NULL: none yet
    rows_done bigint NOT NULL DEFAULT 0,
    rows_total bigint NOT NULL DEFAULT 0,
    rate double precision NOT NULL DEFAULT 0,
    batch_rows int NOT NULL DEFAULT 0,
    throttle text NOT NULL DEFAULT '',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    PRIMARY KEY (migration, table_name)
);

CREATE TABLE IF NOT EXISTS dualwire.problem (
    migration int NOT NULL REFERENCES dualwire.migration ON DELETE CASCADE,
    table_name text NOT NULL,
    key jsonb NOT NULL,
    direction text NOT NULL CHECK (direction IN ('old', 'new')),
    reason text NOT NULL,
    found_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, table_name, key)
);

CREATE TABLE IF NOT EXISTS dualwire.event (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    migration int,
    kind text NOT NULL,
    who text NOT NULL DEFAULT session_user,
    application text NOT NULL DEFAULT current_setting('application_name', true),
    details jsonb NOT NULL DEFAULT '{}'
);

REVOKE ALL ON ALL TABLES IN SCHEMA dualwire FROM PUBLIC;

CREATE OR REPLACE FUNCTION dualwire.routing_document() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object('epoch', r.epoch, 'epoch_id', r.epoch_id, 'timeline', r.timeline,
                              'revision', r.revision, 'state', r.state)
    FROM dualwire.routing r
$$;

CREATE OR REPLACE FUNCTION dualwire._check_sidecar(a_id text, a_secret text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM dualwire.sidecar s WHERE s.id = a_id AND s.secret_hash = sha256(convert_to(a_secret, 'UTF8'));
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown sidecar or wrong secret' USING ERRCODE = '42501',
            HINT = 'Register again under a new id.';
    END IF;
END $$;

-- Backends are remembered with their start, so that a pid that was used again is never terminated by mistake.
CREATE OR REPLACE FUNCTION dualwire._add_backends(a_id text, a_pids int[]) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO dualwire.backend (sidecar, pid, backend_start)
    SELECT a_id, p.pid, (SELECT a.backend_start FROM pg_stat_get_activity(p.pid) a)
    FROM (SELECT DISTINCT unnest(a_pids) AS pid) p
    WHERE p.pid IS NOT NULL
      AND NOT EXISTS (SELECT FROM dualwire.backend b WHERE b.sidecar = a_id AND b.pid = p.pid)
    ON CONFLICT DO NOTHING
$$;

CREATE OR REPLACE FUNCTION dualwire.sidecar_register(
    id text, secret text, service text, speaks text, info jsonb, lease_seconds int
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hash bytea := sha256(convert_to(secret, 'UTF8'));
    until timestamptz := clock_timestamp() + make_interval(secs => greatest(1, least(lease_seconds, 3600)));
BEGIN
    IF coalesce(length(secret), 0) < 16 OR coalesce(length(id), 0) NOT BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION 'a sidecar needs an id and a secret of at least 16 characters' USING ERRCODE = '22023';
    END IF;
    INSERT INTO dualwire.sidecar AS s (id, secret_hash, service, speaks, info, lease_until)
    VALUES ($1, hash, $3, $4, coalesce($5, '{}'), until)
    ON CONFLICT ON CONSTRAINT sidecar_pkey DO UPDATE
        SET service = excluded.service, speaks = excluded.speaks, info = excluded.info,
            lease_until = excluded.lease_until, seen_at = clock_timestamp()
        WHERE s.secret_hash = excluded.secret_hash;
    PERFORM dualwire._check_sidecar($1, $2);
    RETURN dualwire.routing_document();
END $$;

CREATE OR REPLACE FUNCTION dualwire._sidecar_answer() RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object('epoch', r.epoch, 'epoch_id', r.epoch_id, 'revision', r.revision)
    FROM dualwire.routing r
$$;

CREATE OR REPLACE FUNCTION dualwire.sidecar_report(
    id text, secret text, epoch bigint, epoch_id text, revision bigint, lease_seconds int, pids int[], stats jsonb
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM dualwire._check_sidecar($1, $2);
    -- A sidecar that leaves the mirroring to the guard is recorded, and what was verified before counts no more.
    INSERT INTO dualwire.event (migration, kind, details)
    SELECT (SELECT max(m.id) FROM dualwire.migration m WHERE m.phase NOT IN ('completed', 'rolled_back')),
           'dual_write', jsonb_build_object('sidecar', s.id, 'service', s.service, 'enabled', $8->'dual_write_enabled')
    FROM dualwire.sidecar s
    WHERE s.id = $1
      AND coalesce((s.stats->>'dual_write_enabled')::boolean, true)
          IS DISTINCT FROM coalesce(($8->>'dual_write_enabled')::boolean, true);
    IF FOUND THEN
        UPDATE dualwire.migration m SET verified_epoch = NULL, verified_at = NULL
        WHERE m.phase NOT IN ('completed', 'rolled_back');
    END IF;
    UPDATE dualwire.sidecar s
    SET epoch = $3, epoch_id = $4, revision = $5, stats = coalesce($8, '{}'), seen_at = clock_timestamp(),
        lease_until = clock_timestamp() + make_interval(secs => greatest(1, least($6, 3600)))
    WHERE s.id = $1;
    IF NOT FOUND THEN
        PERFORM dualwire._check_sidecar($1, $2);
    END IF;
    DELETE FROM dualwire.backend b WHERE b.sidecar = $1 AND NOT b.pid = ANY (coalesce($7, '{}'));
    PERFORM dualwire._add_backends($1, $7);
    RETURN dualwire._sidecar_answer();
END $$;

CREATE OR REPLACE FUNCTION dualwire.sidecar_enter(id text, secret text, pids int[]) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM dualwire._check_sidecar($1, $2);
    PERFORM dualwire._add_backends($1, $3);
    RETURN dualwire._sidecar_answer();
END $$;

-- The update waits while a swap holds the row; the document is read afterwards, with a fresh snapshot.
CREATE OR REPLACE FUNCTION dualwire.sidecar_hold(id text, secret text, hold_id bigint, held boolean) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM dualwire._check_sidecar($1, $2);
    UPDATE dualwire.sidecar s SET hold_id = $3, held = $4, seen_at = clock_timestamp() WHERE s.id = $1;
    IF NOT FOUND THEN
        PERFORM dualwire._check_sidecar($1, $2);
    END IF;
    RETURN dualwire.routing_document();
END $$;

CREATE OR REPLACE FUNCTION dualwire.sidecar_leave(id text, secret text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM dualwire._check_sidecar($1, $2);
    DELETE FROM dualwire.sidecar s WHERE s.id = $1;
END $$;

REVOKE ALL ON FUNCTION dualwire._check_sidecar(text, text), dualwire._add_backends(text, int[]),
    dualwire._sidecar_answer() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dualwire.routing_document(),
    dualwire.sidecar_register(text, text, text, text, jsonb, int),
    dualwire.sidecar_report(text, text, bigint, text, bigint, int, int[], jsonb),
    dualwire.sidecar_enter(text, text, int[]),
    dualwire.sidecar_hold(text, text, bigint, boolean),
    dualwire.sidecar_leave(text, text) TO PUBLIC;

INSERT INTO dualwire.version (version) VALUES (1)
ON CONFLICT (singleton) DO UPDATE SET version = excluded.version WHERE dualwire.version.version < excluded.version;

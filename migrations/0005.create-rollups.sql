-- Totals and deep pages at a price that does not grow with the log: how many interceptions have ended, by time and by
-- initiator, kept by the database itself, whoever writes.
--
-- What started before sealed_until is in the rollups; what started later is counted where it lies, the live tail. So
-- recording writes nothing here: now and then the tail is sealed, counted once into bridgelog_rollup_changes. What changes
-- behind sealed_until (a late end, an import, a deletion) is written there by the triggers, in the same transaction.
-- Folding moves changes into the buckets. A sum is buckets plus changes, so that neither sealing nor folding ever shows.

CREATE TABLE bridgelog_rollup_state (
    singleton boolean NOT NULL DEFAULT TRUE,
    sealed_until timestamptz NOT NULL,
    CONSTRAINT bridgelog_rollup_state_pkey PRIMARY KEY (singleton),
    CONSTRAINT bridgelog_rollup_state_one_row CHECK (singleton)
);

INSERT INTO bridgelog_rollup_state (sealed_until) VALUES ('-infinity');

CREATE TABLE bridgelog_rollup_changes (
    hour timestamptz NOT NULL,
    initiator_id uuid NOT NULL,
    provider text NOT NULL,
    provider_name text NOT NULL,
    model text NOT NULL,
    client text NOT NULL,
    interceptions bigint NOT NULL
);

-- What is counted together; a client that is null reads 'Unknown'. The names may outgrow an index entry, so that a hash
-- stands in for them, with their lengths, lest the end of one be taken for the beginning of the next.
CREATE TABLE bridgelog_rollup_kinds (
    id integer NOT NULL GENERATED ALWAYS AS IDENTITY,
    provider text NOT NULL,
    provider_name text NOT NULL,
    model text NOT NULL,
    client text NOT NULL,
    CONSTRAINT bridgelog_rollup_kinds_pkey PRIMARY KEY (id)
);

CREATE UNIQUE INDEX bridgelog_rollup_kinds_names_idx ON bridgelog_rollup_kinds (
    sha256(
        decode(
            replace(
                length(provider)::text || ' ' || length(provider_name)::text || ' ' || length(model)::text || ' '
                || provider || provider_name || model || client,
                '\', '\\'
            ),
            'escape'
        )
    )
);

-- Buckets of an hour, a day and a month (UTC) for everyone, with the all-zero UUID; of a day and a month for each initiator,
-- whose hours are counted where they lie. The levels have other names there, so that whoever may see the interceptions of
-- nobody, which is that UUID too, never meets the counts of everyone.
CREATE TABLE bridgelog_rollup_buckets (
    initiator_id uuid NOT NULL,
    level text NOT NULL,
    starts_at timestamptz NOT NULL,
    kind_id integer NOT NULL,
    interceptions bigint NOT NULL,
    -- With the number in it, the index alone answers.
    CONSTRAINT bridgelog_rollup_buckets_pkey
    PRIMARY KEY (initiator_id, level, starts_at, kind_id) INCLUDE (interceptions),
    CONSTRAINT bridgelog_rollup_buckets_level_check CHECK (
        level IN ('hour', 'day', 'month', 'own day', 'own month')
    ),
    CONSTRAINT bridgelog_rollup_buckets_kind_id_fkey FOREIGN KEY (kind_id) REFERENCES bridgelog_rollup_kinds (id)
);

-- The functions run with the rights of their owner: whoever may write interceptions need not be allowed anything here.

-- Keeps sealing from going on until the transaction ends, so that what it writes is either counted by the sealing, or written
-- as a change. In READ COMMITTED the next statement sees what was sealed while this one waited; a transaction with an older
-- snapshot would not, and is made to fail by its row lock if that happened. It has something to return because PL/pgSQL
-- assigns a value sooner than it performs a query.
CREATE FUNCTION bridgelog_hold_sealing() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    held text := pg_advisory_xact_lock_shared(4770321905514818)::text;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM FROM bridgelog_rollup_state FOR SHARE;
    END IF;
    RETURN TRUE;
END;
$$;

CREATE FUNCTION bridgelog_roll_up_insert() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    held boolean := bridgelog_hold_sealing();
BEGIN
    -- As a rule there is nothing to write, and to find this out is cheaper than to group nothing.
    IF EXISTS (
        SELECT 1 FROM new_rows, bridgelog_rollup_state WHERE ended_at IS NOT NULL AND started_at < sealed_until
    ) THEN
        INSERT INTO bridgelog_rollup_changes (hour, initiator_id, provider, provider_name, model, client, interceptions)
        SELECT
            date_trunc('hour', started_at, 'UTC'), initiator_id, provider, provider_name, model,
            coalesce(client, 'Unknown'), count(*)
        FROM new_rows, bridgelog_rollup_state
        WHERE ended_at IS NOT NULL AND started_at < sealed_until
        GROUP BY 1, 2, 3, 4, 5, 6;
    END IF;
    RETURN NULL;
END;
$$;

CREATE FUNCTION bridgelog_roll_up_delete() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    held boolean := bridgelog_hold_sealing();
BEGIN
    INSERT INTO bridgelog_rollup_changes (hour, initiator_id, provider, provider_name, model, client, interceptions)
    SELECT
        date_trunc('hour', started_at, 'UTC'), initiator_id, provider, provider_name, model,
        coalesce(client, 'Unknown'), -count(*)
    FROM old_rows, bridgelog_rollup_state
    WHERE ended_at IS NOT NULL AND started_at < sealed_until
    GROUP BY 1, 2, 3, 4, 5, 6;
    RETURN NULL;
END;
$$;

CREATE FUNCTION bridgelog_roll_up_update() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    held boolean := bridgelog_hold_sealing();
BEGIN
    INSERT INTO bridgelog_rollup_changes (hour, initiator_id, provider, provider_name, model, client, interceptions)
    SELECT
        date_trunc('hour', started_at, 'UTC'), initiator_id, provider, provider_name, model,
        coalesce(client, 'Unknown'), sum(difference)
    FROM (
        SELECT started_at, ended_at, initiator_id, provider, provider_name, model, client, -1 AS difference
        FROM old_rows
        UNION ALL
        SELECT started_at, ended_at, initiator_id, provider, provider_name, model, client, 1 AS difference
        FROM new_rows
    ) AS both_rows, bridgelog_rollup_state
    WHERE ended_at IS NOT NULL AND started_at < sealed_until
    GROUP BY 1, 2, 3, 4, 5, 6
    HAVING sum(difference) <> 0;
    RETURN NULL;
END;
$$;

CREATE FUNCTION bridgelog_roll_up_truncate() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM bridgelog_hold_sealing();
    TRUNCATE bridgelog_rollup_changes, bridgelog_rollup_buckets;
    RETURN NULL;
END;
$$;

CREATE TRIGGER bridgelog_roll_up_insert AFTER INSERT ON aibridge_interceptions
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION bridgelog_roll_up_insert();

CREATE TRIGGER bridgelog_roll_up_delete AFTER DELETE ON aibridge_interceptions
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION bridgelog_roll_up_delete();

CREATE TRIGGER bridgelog_roll_up_update AFTER UPDATE ON aibridge_interceptions
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION bridgelog_roll_up_update();

CREATE TRIGGER bridgelog_roll_up_truncate AFTER TRUNCATE ON aibridge_interceptions
FOR EACH STATEMENT EXECUTE FUNCTION bridgelog_roll_up_truncate();

-- Where buckets and changes differ from a full count: nowhere, unless somebody has written with the triggers disabled. Slow:
-- it reads everything.
CREATE VIEW bridgelog_rollup_differences AS
WITH told (hour, initiator_id, provider, provider_name, model, client, rolled_up, counted) AS (
    SELECT
        date_trunc('hour', started_at, 'UTC') AS hour,
        initiator_id,
        provider,
        provider_name,
        model,
        coalesce(client::text, 'Unknown') AS client,
        0 AS rolled_up,
        count(*) AS counted
    FROM aibridge_interceptions
    WHERE ended_at IS NOT NULL
        AND started_at < (SELECT sealed_until FROM bridgelog_rollup_state)
    GROUP BY 1, 2, 3, 4, 5, 6
    UNION ALL
    SELECT
        hour,
        initiator_id,
        provider,
        provider_name,
        model,
        client,
        interceptions AS rolled_up,
        0 AS counted
    FROM bridgelog_rollup_changes
),

leveled (initiator_id, level, starts_at, provider, provider_name, model, client, rolled_up, counted) AS (
    SELECT
        bucket.initiator_id,
        bucket.level,
        date_trunc(bucket.unit, told.hour, 'UTC') AS starts_at,
        told.provider,
        told.provider_name,
        told.model,
        told.client,
        told.rolled_up,
        told.counted
    FROM told
    CROSS JOIN LATERAL (
        VALUES
        ('00000000-0000-0000-0000-000000000000'::uuid, 'hour', 'hour'),
        ('00000000-0000-0000-0000-000000000000'::uuid, 'day', 'day'),
        ('00000000-0000-0000-0000-000000000000'::uuid, 'month', 'month'),
        (told.initiator_id, 'own day', 'day'),
        (told.initiator_id, 'own month', 'month')
    ) AS bucket (initiator_id, level, unit)
    UNION ALL
    SELECT
        bridgelog_rollup_buckets.initiator_id,
        bridgelog_rollup_buckets.level,
        bridgelog_rollup_buckets.starts_at,
        bridgelog_rollup_kinds.provider,
        bridgelog_rollup_kinds.provider_name,
        bridgelog_rollup_kinds.model,
        bridgelog_rollup_kinds.client,
        bridgelog_rollup_buckets.interceptions AS rolled_up,
        0 AS counted
    FROM bridgelog_rollup_buckets
    INNER JOIN bridgelog_rollup_kinds ON bridgelog_rollup_buckets.kind_id = bridgelog_rollup_kinds.id
)

SELECT
    initiator_id,
    level,
    starts_at,
    provider,
    provider_name,
    model,
    client,
    sum(rolled_up)::bigint AS rolled_up,
    sum(counted)::bigint AS counted
FROM leveled
GROUP BY 1, 2, 3, 4, 5, 6, 7
HAVING sum(rolled_up) <> sum(counted);

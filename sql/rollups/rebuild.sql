-- rebuild: set every bucket right by what it differs from a full count. What is written meanwhile is in neither side of
-- the difference, or in both. Only behind take_upkeep and after insert_all_kinds.
--
-- result  none
-- index   none
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

INSERT INTO bridgelog_rollup_buckets (initiator_id, level, starts_at, kind_id, interceptions)
SELECT
    leveled.initiator_id,
    leveled.level,
    leveled.starts_at,
    bridgelog_rollup_kinds.id AS kind_id,
    sum(leveled.counted) - sum(leveled.rolled_up) AS interceptions
FROM leveled
INNER JOIN bridgelog_rollup_kinds
    ON leveled.provider = bridgelog_rollup_kinds.provider
        AND leveled.provider_name = bridgelog_rollup_kinds.provider_name
        AND leveled.model = bridgelog_rollup_kinds.model
        AND leveled.client = bridgelog_rollup_kinds.client
GROUP BY 1, 2, 3, 4
HAVING sum(leveled.counted) <> sum(leveled.rolled_up)
ON CONFLICT (initiator_id, level, starts_at, kind_id) DO UPDATE
SET interceptions = bridgelog_rollup_buckets.interceptions + excluded.interceptions

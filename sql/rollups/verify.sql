-- verify: where buckets and changes differ from a full count, the latest first. The all-zero initiator is everyone.
--
-- param   most  bigint  tell at most this many
-- result  many  initiator_id uuid, level text, starts_at timestamptz, provider text, provider_name text, model text, client text, rolled_up bigint, counted bigint
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
HAVING sum(rolled_up) <> sum(counted)
ORDER BY 3 DESC, 2 ASC, 1 ASC, 4 ASC, 5 ASC, 6 ASC, 7 ASC
LIMIT :most

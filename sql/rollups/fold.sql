-- fold: move the changes into the buckets: for everyone by hour, day and month, for each initiator by day and month.
--
-- A change whose kind came up after insert_kinds waits for the next time.
--
-- result  none
-- index   none
WITH taken AS (
    DELETE FROM bridgelog_rollup_changes AS changes
    USING bridgelog_rollup_kinds AS kinds
    WHERE kinds.provider = changes.provider
        AND kinds.provider_name = changes.provider_name
        AND kinds.model = changes.model
        AND kinds.client = changes.client
    RETURNING changes.hour, changes.initiator_id, kinds.id AS kind_id, changes.interceptions
)

INSERT INTO bridgelog_rollup_buckets (initiator_id, level, starts_at, kind_id, interceptions)
SELECT
    bucket.initiator_id,
    bucket.level,
    date_trunc(bucket.unit, taken.hour, 'UTC') AS starts_at,
    taken.kind_id,
    sum(taken.interceptions) AS interceptions
FROM taken
CROSS JOIN LATERAL (
    VALUES
    ('00000000-0000-0000-0000-000000000000'::uuid, 'hour', 'hour'),
    ('00000000-0000-0000-0000-000000000000'::uuid, 'day', 'day'),
    ('00000000-0000-0000-0000-000000000000'::uuid, 'month', 'month'),
    (taken.initiator_id, 'own day', 'day'),
    (taken.initiator_id, 'own month', 'month')
) AS bucket (initiator_id, level, unit)
GROUP BY 1, 2, 3, 4
HAVING sum(taken.interceptions) <> 0
ON CONFLICT (initiator_id, level, starts_at, kind_id) DO UPDATE
SET interceptions = bridgelog_rollup_buckets.interceptions + excluded.interceptions

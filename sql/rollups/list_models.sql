-- list_models: the distinct models of ended interceptions that the caller may see, by code point.
--
-- They come from the rollups and the live tail.
--
-- param   prefix      text    only names that begin with this; '' is all of them
-- param   scope       uuid    whose buckets: the caller's, or everyone's, which is the all-zero UUID
-- param   level       text    'own month' for the caller's, 'month' for everyone's
-- param   visible_to  uuid    optional: only models that this user used
-- param   page_size   bigint  at most this many names
-- param   skip        bigint  leave out that many first
-- result  many  name text
-- index   bridgelog_rollup_buckets_pkey
SELECT found.name
FROM (
    SELECT
        bridgelog_rollup_kinds.model AS name,
        bridgelog_rollup_buckets.interceptions
    FROM bridgelog_rollup_buckets
    INNER JOIN bridgelog_rollup_kinds ON bridgelog_rollup_buckets.kind_id = bridgelog_rollup_kinds.id
    WHERE bridgelog_rollup_buckets.initiator_id = :scope
        AND bridgelog_rollup_buckets.initiator_id = :visible_to  -- optional
        AND bridgelog_rollup_buckets.level = :level
    UNION ALL
    SELECT
        model AS name,
        interceptions
    FROM bridgelog_rollup_changes
    WHERE TRUE
        AND initiator_id = :visible_to  -- optional
    UNION ALL
    SELECT
        model AS name,
        1 AS interceptions
    FROM aibridge_interceptions
    WHERE ended_at IS NOT NULL
        AND started_at >= (SELECT sealed_until FROM bridgelog_rollup_state)
        AND started_at <= 'infinity'    -- two bounds: the planner then expects few rows, and takes the index
        AND initiator_id = :visible_to  -- optional
) AS found
WHERE starts_with(found.name, :prefix)
GROUP BY found.name
HAVING sum(found.interceptions) > 0
ORDER BY found.name COLLATE "C" ASC
LIMIT :page_size
OFFSET :skip

-- list_buckets: how many interceptions match a search, in each bucket of a stretch, the latest first; changes included.
--
-- param   scope           uuid         whose buckets: an initiator's, or everyone's, which is the all-zero UUID
-- param   visible_to      uuid         optional: only what this user initiated
-- param   initiator_id    uuid         optional: only this initiator
-- param   provider        text         optional: only this provider
-- param   provider_name   text         optional: only this provider instance
-- param   model           text         optional: only this model
-- param   client          text         optional: only this client; a client that is null reads Unknown
-- param   level           text         which buckets
-- param   unit            text         how long they are: hour, day or month
-- param   begins          timestamptz  where the first bucket begins
-- param   ends            timestamptz  where the last one ends
-- result  many  starts_at timestamptz, interceptions bigint
-- index   bridgelog_rollup_buckets_pkey
SELECT
    counted.starts_at,
    sum(counted.interceptions)::bigint AS interceptions
FROM (
    SELECT
        starts_at,
        interceptions
    FROM bridgelog_rollup_buckets
    WHERE initiator_id = :scope
        AND initiator_id = :visible_to            -- optional
        AND level = :level
        AND starts_at >= :begins
        AND starts_at < :ends
        -- An array is made once; IN would look through the kinds again for each bucket.
        AND kind_id = ANY(ARRAY(
            SELECT id
            FROM bridgelog_rollup_kinds
            WHERE TRUE
                AND provider = :provider            -- optional
                AND provider_name = :provider_name  -- optional
                AND model = :model                  -- optional
                AND client = :client                -- optional
        ))
    UNION ALL
    SELECT
        date_trunc(:unit, hour, 'UTC') AS starts_at,
        interceptions
    FROM bridgelog_rollup_changes
    WHERE hour >= :begins
        AND hour < :ends
        AND initiator_id = :visible_to                -- optional
        AND initiator_id = :initiator_id              -- optional
        AND provider = :provider                        -- optional
        AND provider_name = :provider_name              -- optional
        AND model = :model                              -- optional
        AND client = :client                            -- optional
) AS counted
GROUP BY counted.starts_at
HAVING sum(counted.interceptions) > 0
ORDER BY counted.starts_at DESC

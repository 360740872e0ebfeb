-- count_stretches: how many interceptions match a search, in each of the stretches that the time is divided into: whole
-- buckets, with the changes that are not folded yet; or, where a bucket would be too coarse or is not made yet, one by one.
-- Also up to where the rollups reach: the stretches must have been chosen by just that instant, else the counts mean nothing.
--
-- param   scope           uuid           whose buckets: an initiator's, or everyone's, which is the all-zero UUID
-- param   visible_to      uuid           optional: only what this user initiated
-- param   initiator_id    uuid           optional: only this initiator
-- param   provider        text           optional: only this provider
-- param   provider_name   text           optional: only this provider instance
-- param   model           text           optional: only this model
-- param   client          text           optional: only this client; a client that is null reads Unknown
-- param   level           text[]         the stretches: buckets of which level; '' counts one by one
-- param   begins          timestamptz[]  … from where,
-- param   ends            timestamptz[]  … and up to where; that instant is left out of buckets, and included one by one
-- param   whole_begins    timestamptz    where the first stretch of buckets begins
-- param   whole_ends      timestamptz    where the last one ends
-- result  one  sealed_until timestamptz, interceptions bigint[]
-- index   bridgelog_rollup_buckets_pkey
WITH changed AS MATERIALIZED (
    SELECT
        hour,
        sum(interceptions) AS interceptions
    FROM bridgelog_rollup_changes
    WHERE hour >= :whole_begins
        AND hour < :whole_ends
        AND initiator_id = :visible_to                -- optional
        AND initiator_id = :initiator_id              -- optional
        AND provider = :provider                        -- optional
        AND provider_name = :provider_name              -- optional
        AND model = :model                              -- optional
        AND client = :client                            -- optional
    GROUP BY hour
)

SELECT
    (SELECT sealed_until FROM bridgelog_rollup_state) AS sealed_until,
    array_agg(
        CASE
            WHEN stretch.level = '' THEN (
                SELECT count(*)
                FROM aibridge_interceptions
                WHERE ended_at IS NOT NULL
                    AND started_at >= stretch.begins
                    AND started_at <= stretch.ends
                    AND initiator_id = :visible_to                   -- optional
                    AND initiator_id = :initiator_id                 -- optional
                    AND provider = :provider                           -- optional
                    AND provider_name = :provider_name                 -- optional
                    AND model = :model                                 -- optional
                    AND coalesce(client::text, 'Unknown') = :client    -- optional
            )
            ELSE (
                SELECT coalesce(sum(interceptions), 0)
                FROM bridgelog_rollup_buckets
                WHERE initiator_id = :scope
                    AND initiator_id = :visible_to            -- optional
                    AND level = stretch.level
                    AND starts_at >= stretch.begins
                    AND starts_at < stretch.ends
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
            ) + (
                SELECT coalesce(sum(interceptions), 0)
                FROM changed
                WHERE hour >= stretch.begins
                    AND hour < stretch.ends
            )
        END::bigint
        ORDER BY stretch.place
    ) AS interceptions
FROM unnest(:level::text[], :begins::timestamptz[], :ends::timestamptz[])
WITH ORDINALITY AS stretch (level, begins, ends, place)

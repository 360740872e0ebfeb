-- sum_buckets: how many interceptions match a search, in whole buckets, in changes that are not folded yet, and, where a
-- bucket would be too coarse or is not made yet, one by one. Also up to where the rollups reach: the stretches must have
-- been chosen by just that instant, else the sum means nothing.
--
-- param   scope           uuid           whose buckets: an initiator's, or everyone's, which is the all-zero UUID
-- param   visible_to      uuid           optional: only what this user initiated
-- param   initiator_id    uuid           optional: only this initiator
-- param   provider        text           optional: only this provider
-- param   provider_name   text           optional: only this provider instance
-- param   model           text           optional: only this model
-- param   client          text           optional: only this client; a client that is null reads Unknown
-- param   level           text[]         stretches of whole buckets: of which level,
-- param   begins          timestamptz[]  … from where,
-- param   ends            timestamptz[]  … and up to where, that instant left out
-- param   whole_begins    timestamptz    where the first of these begins
-- param   whole_ends      timestamptz    where the last of them ends
-- param   exact_begins    timestamptz[]  stretches to count one by one: from where,
-- param   exact_ends      timestamptz[]  … and up to where, that instant included
-- result  one  sealed_until timestamptz, total bigint
-- index   bridgelog_rollup_buckets_pkey
SELECT
    (SELECT sealed_until FROM bridgelog_rollup_state) AS sealed_until,
    (
        SELECT coalesce(sum(bucket.interceptions), 0)
        FROM unnest(:level::text[], :begins::timestamptz[], :ends::timestamptz[]) AS stretch (level, begins, ends)
        CROSS JOIN LATERAL (
            SELECT sum(bridgelog_rollup_buckets.interceptions) AS interceptions
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
        ) AS bucket
    )::bigint
    + (
        SELECT coalesce(sum(interceptions), 0)
        FROM bridgelog_rollup_changes
        WHERE hour >= :whole_begins
            AND hour < :whole_ends
            AND initiator_id = :visible_to                -- optional
            AND initiator_id = :initiator_id              -- optional
            AND provider = :provider                        -- optional
            AND provider_name = :provider_name              -- optional
            AND model = :model                              -- optional
            AND client = :client                            -- optional
    )::bigint
    + (
        SELECT coalesce(sum(found.interceptions), 0)
        FROM unnest(:exact_begins::timestamptz[], :exact_ends::timestamptz[]) AS stretch (begins, ends)
        CROSS JOIN LATERAL (
            SELECT count(*) AS interceptions
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
        ) AS found
    )::bigint AS total

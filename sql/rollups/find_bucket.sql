-- find_bucket: the bucket of the finest level that holds the match which so many others come before, in a stretch of whole
-- buckets; and how many matches of that bucket come before it. It descends: a month, a day in it, an hour in that.
--
-- param   scope           uuid         whose buckets: an initiator's, or everyone's, which is the all-zero UUID
-- param   visible_to      uuid         optional: only what this user initiated
-- param   initiator_id    uuid         optional: only this initiator
-- param   provider        text         optional: only this provider
-- param   provider_name   text         optional: only this provider instance
-- param   model           text         optional: only this model
-- param   client          text         optional: only this client; a client that is null reads Unknown
-- param   level           text[]       the levels to descend, from that of the stretch to the finest,
-- param   unit            text[]       … and how long their buckets are: hour, day or month
-- param   begins          timestamptz  where the stretch begins
-- param   ends            timestamptz  where it ends, that instant left out
-- param   skip            bigint       how many matches of the stretch, from its end, come before
-- result  maybe  ends timestamptz, skip bigint
-- index   bridgelog_rollup_buckets_pkey
WITH RECURSIVE place (depth, begins, ends, skip) AS (
    SELECT
        1 AS depth,
        :begins::timestamptz AS begins,
        :ends::timestamptz AS ends,
        :skip::bigint AS skip
    UNION ALL
    SELECT
        place.depth + 1 AS depth,
        found.starts_at AS begins,
        (
            found.starts_at AT TIME ZONE 'UTC' + ('1 ' || (:unit::text[])[place.depth])::interval
        ) AT TIME ZONE 'UTC' AS ends,
        place.skip - found.before AS skip
    FROM place
    CROSS JOIN LATERAL (
        SELECT
            running.starts_at,
            (running.through - running.interceptions)::bigint AS before
        FROM (
            SELECT
                counted.starts_at,
                sum(counted.interceptions) AS interceptions,
                sum(sum(counted.interceptions)) OVER (ORDER BY counted.starts_at DESC) AS through
            FROM (
                SELECT
                    starts_at,
                    interceptions
                FROM bridgelog_rollup_buckets
                WHERE initiator_id = :scope
                    AND initiator_id = :visible_to            -- optional
                    AND level = (:level::text[])[place.depth]
                    AND starts_at >= place.begins
                    AND starts_at < place.ends
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
                    date_trunc((:unit::text[])[place.depth], hour, 'UTC') AS starts_at,
                    interceptions
                FROM bridgelog_rollup_changes
                WHERE hour >= place.begins
                    AND hour < place.ends
                    AND initiator_id = :visible_to                -- optional
                    AND initiator_id = :initiator_id              -- optional
                    AND provider = :provider                        -- optional
                    AND provider_name = :provider_name              -- optional
                    AND model = :model                              -- optional
                    AND client = :client                            -- optional
            ) AS counted
            GROUP BY counted.starts_at
        ) AS running
        WHERE running.through > place.skip
        ORDER BY running.starts_at DESC
        LIMIT 1
    ) AS found
    WHERE place.depth <= cardinality(:level::text[])
)

SELECT
    ends,
    skip
FROM place
WHERE depth > cardinality(:level::text[])

-- count_matching: how many interceptions match a search and may be seen by the caller.
--
-- param   visible_to      uuid         optional: only what this user initiated
-- param   initiator_id    uuid         optional: only this initiator
-- param   provider        text         optional: only this provider
-- param   provider_name   text         optional: only this provider instance
-- param   model           text         optional: only this model
-- param   client          text         optional: only this client; a client that is null reads Unknown
-- param   started_after   timestamptz  optional: not before this instant
-- param   started_before  timestamptz  optional: not after this instant
-- result  one   total bigint
-- index   aibridge_interceptions_initiator_started_at_idx
SELECT count(*) AS total
FROM aibridge_interceptions
WHERE ended_at IS NOT NULL
    AND initiator_id = :visible_to                  -- optional
    AND initiator_id = :initiator_id                -- optional
    AND provider = :provider                        -- optional
    AND provider_name = :provider_name              -- optional
    AND model = :model                              -- optional
    AND coalesce(client::text, 'Unknown') = :client -- optional
    AND started_at >= :started_after                -- optional
    AND started_at <= :started_before               -- optional

-- list_interceptions: the peer's page: interceptions and who caused them, skipped one by one.
--
-- param   initiator_id    uuid         optional: only this initiator
-- param   provider        text         optional: only this provider
-- param   provider_name   text         optional: only this provider instance
-- param   model           text         optional: only this model
-- param   client          text         optional: only this client; a client that is null reads Unknown
-- param   started_after   timestamptz  optional: not before this instant
-- param   page_size       bigint       at most this many
-- param   skip            bigint       leave out that many first
-- result  many  id uuid, initiator_id uuid, api_key_id text, provider text, provider_name text, model text, client varchar, metadata jsonb, started_at timestamptz, ended_at timestamptz, username text, name text, avatar_url text
-- index   aibridge_interceptions_started_at_idx
SELECT
    interceptions.id,
    interceptions.initiator_id,
    interceptions.api_key_id,
    interceptions.provider,
    interceptions.provider_name,
    interceptions.model,
    interceptions.client,
    interceptions.metadata,
    interceptions.started_at,
    interceptions.ended_at,
    users.username,
    users.name,
    users.avatar_url
FROM aibridge_interceptions AS interceptions
LEFT JOIN users ON interceptions.initiator_id = users.id
WHERE interceptions.ended_at IS NOT NULL
    AND interceptions.initiator_id = :initiator_id                 -- optional
    AND interceptions.provider = :provider                         -- optional
    AND interceptions.provider_name = :provider_name               -- optional
    AND interceptions.model = :model                               -- optional
    AND coalesce(interceptions.client::text, 'Unknown') = :client  -- optional
    AND interceptions.started_at >= :started_after                 -- optional
ORDER BY interceptions.started_at DESC, interceptions.id DESC
LIMIT :page_size
OFFSET :skip

-- insert_interceptions: the interceptions whose id is not stored yet, their threads found.
--
-- An interception that answers a tool call has the interception that recorded this call as its parent: the newest such
-- call of the same initiator. One array an attribute; a row is what stands at one position, and of several rows with one
-- id the first counts.
--
-- param   id                        uuid[]         ids
-- param   initiator_id              uuid[]         who caused them
-- param   api_key_id                text[]         with which token, or null
-- param   provider                  text[]         providers
-- param   provider_name             text[]         provider instances
-- param   model                     text[]         models as requested
-- param   client                    text[]         clients, or null
-- param   metadata                  jsonb[]        metadata
-- param   started_at                timestamptz[]  starts
-- param   ended_at                  timestamptz[]  ends, or null
-- param   client_session_id         text[]         the client's own sessions, or null
-- param   correlating_tool_call_id  text[]         the tool calls that they answer, or null
-- result  many  id uuid
-- index   aibridge_tool_usages_provider_tool_call_id_idx
INSERT INTO aibridge_interceptions (
    id,
    initiator_id,
    api_key_id,
    provider,
    provider_name,
    model,
    client,
    metadata,
    started_at,
    ended_at,
    client_session_id,
    thread_parent_id,
    thread_root_id
)
SELECT
    sent.id,
    sent.initiator_id,
    sent.api_key_id,
    sent.provider,
    sent.provider_name,
    sent.model,
    sent.client,
    CASE WHEN erased.user_id IS NULL THEN sent.metadata ELSE '{}' END AS metadata,
    sent.started_at,
    sent.ended_at,
    CASE WHEN erased.user_id IS NULL THEN sent.client_session_id END AS client_session_id,
    parent.id AS thread_parent_id,
    coalesce(parent.thread_root_id, parent.id) AS thread_root_id
FROM unnest(
    :id::uuid[],
    :initiator_id::uuid[],
    :api_key_id::text[],
    :provider::text[],
    :provider_name::text[],
    :model::text[],
    :client::text[],
    :metadata::jsonb[],
    :started_at::timestamptz[],
    :ended_at::timestamptz[],
    :client_session_id::text[],
    :correlating_tool_call_id::text[]
) WITH ORDINALITY AS sent (
    id,
    initiator_id,
    api_key_id,
    provider,
    provider_name,
    model,
    client,
    metadata,
    started_at,
    ended_at,
    client_session_id,
    correlating_tool_call_id,
    position
)
LEFT JOIN LATERAL (
    SELECT
        aibridge_interceptions.id,
        aibridge_interceptions.thread_root_id
    FROM aibridge_tool_usages
    INNER JOIN aibridge_interceptions ON aibridge_tool_usages.interception_id = aibridge_interceptions.id
    WHERE aibridge_tool_usages.provider_tool_call_id = sent.correlating_tool_call_id
        AND aibridge_interceptions.initiator_id = sent.initiator_id
    ORDER BY aibridge_tool_usages.created_at DESC, aibridge_tool_usages.id DESC
    LIMIT 1
) AS parent ON TRUE
-- What erasure has removed does not come back.
LEFT JOIN bridgelog_erased_users AS erased
    ON sent.initiator_id = erased.user_id
        AND sent.started_at <= erased.erased_until
ORDER BY sent.id ASC, sent.position ASC
ON CONFLICT (id) DO NOTHING
RETURNING id

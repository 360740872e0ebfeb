-- insert_tool_usages: the tool usages that are not stored yet. One array an attribute; of several rows with one id the
-- first counts.
--
-- param   id                     uuid[]         ids
-- param   interception_id        uuid[]         the interceptions that own them
-- param   provider_response_id   text[]         the provider's answers
-- param   provider_tool_call_id  text[]         the provider's ids of the calls, or null
-- param   server_url             text[]         the MCP servers, or null
-- param   tool                   text[]         the tools
-- param   input                  text[]         their inputs
-- param   injected               boolean[]      whether the bridge added the tool
-- param   invocation_error       text[]         what went wrong, or null
-- param   metadata               jsonb[]        metadata
-- param   created_at             timestamptz[]  when
-- result  many  id uuid
-- index   bridgelog_erased_users_pkey, aibridge_interceptions_pkey
INSERT INTO aibridge_tool_usages (
    id,
    interception_id,
    provider_response_id,
    provider_tool_call_id,
    server_url,
    tool,
    input,
    injected,
    invocation_error,
    metadata,
    created_at
)
SELECT
    sent.id,
    sent.interception_id,
    sent.provider_response_id,
    sent.provider_tool_call_id,
    CASE WHEN erased.found THEN NULL ELSE sent.server_url END AS server_url,
    sent.tool,
    CASE WHEN erased.found THEN '' ELSE sent.input END AS input,
    sent.injected,
    CASE WHEN erased.found THEN NULL ELSE sent.invocation_error END AS invocation_error,
    CASE WHEN erased.found THEN '{}' ELSE sent.metadata END AS metadata,
    sent.created_at
FROM unnest(
    :id::uuid[],
    :interception_id::uuid[],
    :provider_response_id::text[],
    :provider_tool_call_id::text[],
    :server_url::text[],
    :tool::text[],
    :input::text[],
    :injected::boolean[],
    :invocation_error::text[],
    :metadata::jsonb[],
    :created_at::timestamptz[]
) WITH ORDINALITY AS sent (
    id,
    interception_id,
    provider_response_id,
    provider_tool_call_id,
    server_url,
    tool,
    input,
    injected,
    invocation_error,
    metadata,
    created_at,
    position
)
CROSS JOIN LATERAL (
    -- What erasure has removed does not come back.
    SELECT count(*) > 0 AS found
    FROM bridgelog_erased_interceptions
    WHERE bridgelog_erased_interceptions.id = sent.interception_id
) AS erased
ORDER BY sent.id ASC, sent.position ASC
ON CONFLICT (id) DO NOTHING
RETURNING id

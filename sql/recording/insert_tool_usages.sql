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
-- index   none
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
ORDER BY id ASC, position ASC
ON CONFLICT (id) DO NOTHING
RETURNING id

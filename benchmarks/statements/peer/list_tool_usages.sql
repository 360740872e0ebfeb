-- list_tool_usages: the peer's query for the tool usages of a page.
--
-- param   ids  uuid[]  the interceptions of the page
-- result  many  id uuid, interception_id uuid, provider_response_id text, provider_tool_call_id text, server_url text, tool text, input text, injected boolean, invocation_error text, metadata jsonb, created_at timestamptz
-- index   aibridge_tool_usages_interception_id_idx
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
FROM aibridge_tool_usages
WHERE interception_id = ANY(:ids)
ORDER BY created_at ASC, id ASC

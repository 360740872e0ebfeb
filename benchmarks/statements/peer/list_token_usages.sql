-- list_token_usages: the peer's query for the token usages of a page.
--
-- param   ids  uuid[]  the interceptions of the page
-- result  many  id uuid, interception_id uuid, provider_response_id text, input_tokens bigint, output_tokens bigint, cache_read_input_tokens bigint, cache_write_input_tokens bigint, metadata jsonb, created_at timestamptz
-- index   aibridge_token_usages_interception_id_idx
SELECT
    id,
    interception_id,
    provider_response_id,
    input_tokens,
    output_tokens,
    cache_read_input_tokens,
    cache_write_input_tokens,
    metadata,
    created_at
FROM aibridge_token_usages
WHERE interception_id = ANY(:ids)
ORDER BY created_at ASC, id ASC

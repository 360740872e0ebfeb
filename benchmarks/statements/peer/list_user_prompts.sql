-- list_user_prompts: the peer's query for the prompts of a page.
--
-- param   ids  uuid[]  the interceptions of the page
-- result  many  id uuid, interception_id uuid, provider_response_id text, prompt text, metadata jsonb, created_at timestamptz
-- index   aibridge_user_prompts_interception_id_idx
SELECT
    id,
    interception_id,
    provider_response_id,
    prompt,
    metadata,
    created_at
FROM aibridge_user_prompts
WHERE interception_id = ANY(:ids)
ORDER BY created_at ASC, id ASC

-- insert_user_prompts: the user prompts that are not stored yet. One array an attribute; of several rows with one id the
-- first counts.
--
-- param   id                    uuid[]         ids
-- param   interception_id       uuid[]         the interceptions that own them
-- param   provider_response_id  text[]         the provider's answers
-- param   prompt                text[]         the prompts
-- param   metadata              jsonb[]        metadata
-- param   created_at            timestamptz[]  when
-- result  many  id uuid
-- index   none
INSERT INTO aibridge_user_prompts (
    id,
    interception_id,
    provider_response_id,
    prompt,
    metadata,
    created_at
)
SELECT
    id,
    interception_id,
    provider_response_id,
    prompt,
    metadata,
    created_at
FROM unnest(
    :id::uuid[],
    :interception_id::uuid[],
    :provider_response_id::text[],
    :prompt::text[],
    :metadata::jsonb[],
    :created_at::timestamptz[]
) WITH ORDINALITY AS sent (
    id,
    interception_id,
    provider_response_id,
    prompt,
    metadata,
    created_at,
    position
)
ORDER BY id ASC, position ASC
ON CONFLICT (id) DO NOTHING
RETURNING id

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
-- index   bridgelog_erased_users_pkey, aibridge_interceptions_pkey
INSERT INTO aibridge_user_prompts (
    id,
    interception_id,
    provider_response_id,
    prompt,
    metadata,
    created_at
)
SELECT
    sent.id,
    sent.interception_id,
    sent.provider_response_id,
    CASE WHEN erased.found THEN '' ELSE sent.prompt END AS prompt,
    CASE WHEN erased.found THEN '{}' ELSE sent.metadata END AS metadata,
    sent.created_at
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
CROSS JOIN LATERAL (
    -- What erasure has removed does not come back.
    SELECT count(*) > 0 AS found
    FROM bridgelog_erased_interceptions
    WHERE bridgelog_erased_interceptions.id = sent.interception_id
) AS erased
ORDER BY sent.id ASC, sent.position ASC
ON CONFLICT (id) DO NOTHING
RETURNING id

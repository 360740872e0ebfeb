-- insert_token_usages: the token usages that are not stored yet. One array an attribute; of several rows with one id the
-- first counts.
--
-- param   id                        uuid[]         ids
-- param   interception_id           uuid[]         the interceptions that own them
-- param   provider_response_id      text[]         the provider's answers
-- param   input_tokens              bigint[]       tokens sent, cached ones left out
-- param   output_tokens             bigint[]       tokens received
-- param   cache_read_input_tokens   bigint[]       tokens read from the provider's cache
-- param   cache_write_input_tokens  bigint[]       tokens written to it
-- param   metadata                  jsonb[]        metadata
-- param   created_at                timestamptz[]  when
-- result  many  id uuid
-- index   bridgelog_erased_users_pkey, aibridge_interceptions_pkey
INSERT INTO aibridge_token_usages (
    id,
    interception_id,
    provider_response_id,
    input_tokens,
    output_tokens,
    cache_read_input_tokens,
    cache_write_input_tokens,
    metadata,
    created_at
)
SELECT
    sent.id,
    sent.interception_id,
    sent.provider_response_id,
    sent.input_tokens,
    sent.output_tokens,
    sent.cache_read_input_tokens,
    sent.cache_write_input_tokens,
    CASE WHEN erased.found THEN '{}' ELSE sent.metadata END AS metadata,
    sent.created_at
FROM unnest(
    :id::uuid[],
    :interception_id::uuid[],
    :provider_response_id::text[],
    :input_tokens::bigint[],
    :output_tokens::bigint[],
    :cache_read_input_tokens::bigint[],
    :cache_write_input_tokens::bigint[],
    :metadata::jsonb[],
    :created_at::timestamptz[]
) WITH ORDINALITY AS sent (
    id,
    interception_id,
    provider_response_id,
    input_tokens,
    output_tokens,
    cache_read_input_tokens,
    cache_write_input_tokens,
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

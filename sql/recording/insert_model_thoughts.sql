-- insert_model_thoughts: the model thoughts that are not stored yet. One array an attribute.
--
-- param   interception_id  uuid[]         the interceptions that own them
-- param   content          text[]         what the model thought
-- param   metadata         jsonb[]        metadata
-- param   created_at       timestamptz[]  when
-- result  many  interception_id uuid
-- index   bridgelog_erased_users_pkey, aibridge_interceptions_pkey
INSERT INTO aibridge_model_thoughts (
    interception_id,
    content,
    metadata,
    created_at
)
SELECT
    sent.interception_id,
    CASE WHEN erased.found THEN '' ELSE sent.content END AS content,
    CASE WHEN erased.found THEN '{}' ELSE sent.metadata END AS metadata,
    sent.created_at
FROM unnest(
    :interception_id::uuid[],
    :content::text[],
    :metadata::jsonb[],
    :created_at::timestamptz[]
) AS sent (
    interception_id,
    content,
    metadata,
    created_at
)
CROSS JOIN LATERAL (
    -- What erasure has removed does not come back.
    SELECT count(*) > 0 AS found
    FROM bridgelog_erased_interceptions
    WHERE bridgelog_erased_interceptions.id = sent.interception_id
) AS erased
CROSS JOIN LATERAL (
    -- One of this instant whose content was removed: what it was is not known any more, so it counts as this one.
    SELECT count(*) > 0 AS found
    FROM aibridge_model_thoughts AS thought
    WHERE thought.interception_id = sent.interception_id
        AND thought.created_at = sent.created_at
        AND thought.content = ''
        AND (
            erased.found
            OR thought.created_at < (SELECT removed_before FROM bridgelog_content_removal)
        )
) AS removed
WHERE NOT removed.found
ORDER BY sent.interception_id ASC, sent.created_at ASC
ON CONFLICT (interception_id, created_at, sha256(decode(replace(content, '\', '\\'), 'escape'))) DO NOTHING
RETURNING interception_id

-- insert_model_thoughts: the model thoughts that are not stored yet. One array an attribute.
--
-- param   interception_id  uuid[]         the interceptions that own them
-- param   content          text[]         what the model thought
-- param   metadata         jsonb[]        metadata
-- param   created_at       timestamptz[]  when
-- result  many  interception_id uuid
-- index   none
INSERT INTO aibridge_model_thoughts (
    interception_id,
    content,
    metadata,
    created_at
)
SELECT
    interception_id,
    content,
    metadata,
    created_at
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
ORDER BY interception_id ASC, created_at ASC
ON CONFLICT (interception_id, created_at, sha256(decode(replace(content, '\', '\\'), 'escape'))) DO NOTHING
RETURNING interception_id

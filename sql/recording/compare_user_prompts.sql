-- compare_user_prompts: in which members user prompts that are stored differ from what was sent under their ids.
--
-- What retention or erasure has removed is not compared.
--
-- param   sent  jsonb  an array of objects: the id, and the members to compare, named as the columns
-- result  many  position int8, member text
-- index   aibridge_user_prompts_pkey
WITH pairs AS MATERIALIZED (
    -- Both as the columns hold them, so that what is equal there is equal here; made once, not for each member.
    SELECT
        sent.position,
        sent.body,
        to_jsonb(stored) AS stored,
        to_jsonb(jsonb_populate_record(NULL::aibridge_user_prompts, sent.body)) AS sent,
        erased.found AS erased,
        stored.prompt = ''
        AND stored.created_at < (SELECT removed_before FROM bridgelog_content_removal) AS removed
    FROM jsonb_array_elements(:sent::jsonb) WITH ORDINALITY AS sent (body, position)
    INNER JOIN aibridge_user_prompts AS stored ON (sent.body ->> 'id')::uuid = stored.id
    CROSS JOIN LATERAL (
        SELECT count(*) > 0 AS found
        FROM bridgelog_erased_interceptions
        WHERE bridgelog_erased_interceptions.id = stored.interception_id
    ) AS erased
)

SELECT
    pairs.position,
    member.name AS member
FROM pairs
CROSS JOIN LATERAL jsonb_object_keys(pairs.body) AS member (name)
WHERE pairs.stored -> member.name IS DISTINCT FROM pairs.sent -> member.name
    AND NOT (pairs.removed AND member.name = 'prompt')
    AND NOT (pairs.erased AND member.name IN ('prompt', 'metadata'))
ORDER BY pairs.position ASC, member.name ASC

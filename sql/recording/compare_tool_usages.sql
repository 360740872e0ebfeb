-- compare_tool_usages: in which members tool usages that are stored differ from what was sent under their ids.
--
-- A text that is null and an empty one are the same: both read as empty. What retention or erasure has
-- removed is not compared.
--
-- param   sent  jsonb  an array of objects: the id, and the members to compare, named as the columns
-- result  many  position int8, member text
-- index   aibridge_tool_usages_pkey
WITH pairs AS MATERIALIZED (
    -- Both as the columns hold them, so that what is equal there is equal here; made once, not for each member.
    SELECT
        sent.position,
        sent.body,
        to_jsonb(stored) AS stored,
        to_jsonb(jsonb_populate_record(NULL::aibridge_tool_usages, sent.body)) AS sent,
        erased.found AS erased,
        stored.input = ''
        AND stored.created_at < (SELECT removed_before FROM bridgelog_content_removal) AS removed
    FROM jsonb_array_elements(:sent::jsonb) WITH ORDINALITY AS sent (body, position)
    INNER JOIN aibridge_tool_usages AS stored ON (sent.body ->> 'id')::uuid = stored.id
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
WHERE coalesce(nullif(pairs.stored -> member.name, 'null'), '""')
    IS DISTINCT FROM coalesce(nullif(pairs.sent -> member.name, 'null'), '""')
    AND NOT (pairs.removed AND member.name = 'input')
    AND NOT (pairs.erased AND member.name IN ('input', 'server_url', 'invocation_error', 'metadata'))
ORDER BY pairs.position ASC, member.name ASC

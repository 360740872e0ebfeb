-- compare_tool_usages: in which members tool usages that are stored differ from what was sent under their ids.
--
-- A text that is null and an empty one are the same: both read as empty.
--
-- param   sent  jsonb  an array of objects: the id, and the members to compare, named as the columns
-- result  many  position int8, member text
-- index   aibridge_tool_usages_pkey
SELECT
    sent.position,
    member.key AS member
FROM jsonb_array_elements(:sent::jsonb) WITH ORDINALITY AS sent (body, position)
INNER JOIN aibridge_tool_usages AS stored ON (sent.body ->> 'id')::uuid = stored.id
CROSS JOIN LATERAL jsonb_each(sent.body) AS member
WHERE coalesce(nullif(to_jsonb(stored) -> member.key, 'null'), '""')
    IS DISTINCT FROM coalesce(
        nullif(to_jsonb(jsonb_populate_record(NULL::aibridge_tool_usages, sent.body)) -> member.key, 'null'), '""'
    )
ORDER BY sent.position ASC, member.key ASC

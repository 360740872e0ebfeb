-- compare_token_usages: in which members token usages that are stored differ from what was sent under their ids.
--
-- param   sent  jsonb  an array of objects: the id, and the members to compare, named as the columns
-- result  many  position int8, member text
-- index   aibridge_token_usages_pkey
SELECT
    sent.position,
    member.key AS member
FROM jsonb_array_elements(:sent::jsonb) WITH ORDINALITY AS sent (body, position)
INNER JOIN aibridge_token_usages AS stored ON (sent.body ->> 'id')::uuid = stored.id
CROSS JOIN LATERAL jsonb_each(sent.body) AS member
WHERE to_jsonb(stored) -> member.key
    IS DISTINCT FROM to_jsonb(jsonb_populate_record(NULL::aibridge_token_usages, sent.body)) -> member.key
ORDER BY sent.position ASC, member.key ASC

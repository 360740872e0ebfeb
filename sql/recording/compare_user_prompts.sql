-- compare_user_prompts: in which members user prompts that are stored differ from what was sent under their ids.
--
-- param   sent  jsonb  an array of objects: the id, and the members to compare, named as the columns
-- result  many  position int8, member text
-- index   aibridge_user_prompts_pkey
SELECT
    sent.position,
    member.key AS member
FROM jsonb_array_elements(:sent::jsonb) WITH ORDINALITY AS sent (body, position)
INNER JOIN aibridge_user_prompts AS stored ON (sent.body ->> 'id')::uuid = stored.id
CROSS JOIN LATERAL jsonb_each(sent.body) AS member
WHERE to_jsonb(stored) -> member.key
    IS DISTINCT FROM to_jsonb(jsonb_populate_record(NULL::aibridge_user_prompts, sent.body)) -> member.key
ORDER BY sent.position ASC, member.key ASC

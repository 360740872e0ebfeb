-- compare_interceptions: in which members interceptions that are stored differ from what was sent under their ids.
--
-- An end that is still missing is no difference. Metadata that an end was merged into counts as what it was before, too.
--
-- param   sent  jsonb  an array of objects: the id, and the members to compare, named as the columns
-- result  many  position int8, member text
-- index   aibridge_interceptions_pkey
SELECT
    sent.position,
    member.key AS member
FROM jsonb_array_elements(:sent::jsonb) WITH ORDINALITY AS sent (body, position)
INNER JOIN aibridge_interceptions AS stored ON (sent.body ->> 'id')::uuid = stored.id
LEFT JOIN bridgelog_merged_metadata AS merged ON stored.id = merged.interception_id
CROSS JOIN LATERAL jsonb_each(sent.body) AS member
WHERE to_jsonb(stored) -> member.key
    IS DISTINCT FROM to_jsonb(jsonb_populate_record(NULL::aibridge_interceptions, sent.body)) -> member.key
    AND NOT (member.key = 'ended_at' AND stored.ended_at IS NULL)
    AND NOT (member.key = 'metadata' AND member.value IS NOT DISTINCT FROM merged.metadata_before)
ORDER BY sent.position ASC, member.key ASC

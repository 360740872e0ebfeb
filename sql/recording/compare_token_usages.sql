-- compare_token_usages: in which members token usages that are stored differ from what was sent under their ids.
--
-- What erasure has removed is not compared.
--
-- param   sent  jsonb  an array of objects: the id, and the members to compare, named as the columns
-- result  many  position int8, member text
-- index   aibridge_token_usages_pkey
WITH pairs AS MATERIALIZED (
    -- Both as the columns hold them, so that what is equal there is equal here; made once, not for each member.
    SELECT
        sent.position,
        sent.body,
        to_jsonb(stored) AS stored,
        to_jsonb(jsonb_populate_record(NULL::aibridge_token_usages, sent.body)) AS sent,
        erased.found AS erased
    FROM jsonb_array_elements(:sent::jsonb) WITH ORDINALITY AS sent (body, position)
    INNER JOIN aibridge_token_usages AS stored ON (sent.body ->> 'id')::uuid = stored.id
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
    AND NOT (pairs.erased AND member.name = 'metadata')
ORDER BY pairs.position ASC, member.name ASC

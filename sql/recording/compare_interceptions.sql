-- compare_interceptions: in which members interceptions that are stored differ from what was sent under their ids.
--
-- An end that is still missing is no difference. Metadata that an end was merged into counts as what it was before, too.
-- What erasure has removed is not compared.
--
-- param   sent  jsonb  an array of objects: the id, and the members to compare, named as the columns
-- result  many  position int8, member text
-- index   aibridge_interceptions_pkey
WITH pairs AS MATERIALIZED (
    -- Both as the columns hold them, so that what is equal there is equal here; made once, not for each member.
    SELECT
        sent.position,
        sent.body,
        to_jsonb(stored) AS stored,
        to_jsonb(jsonb_populate_record(NULL::aibridge_interceptions, sent.body)) AS sent,
        merged.metadata_before,
        erased.user_id IS NOT NULL AS erased
    FROM jsonb_array_elements(:sent::jsonb) WITH ORDINALITY AS sent (body, position)
    INNER JOIN aibridge_interceptions AS stored ON (sent.body ->> 'id')::uuid = stored.id
    LEFT JOIN bridgelog_merged_metadata AS merged ON stored.id = merged.interception_id
    LEFT JOIN bridgelog_erased_users AS erased
        ON stored.initiator_id = erased.user_id
            AND stored.started_at <= erased.erased_until
)

SELECT
    pairs.position,
    member.name AS member
FROM pairs
CROSS JOIN LATERAL jsonb_object_keys(pairs.body) AS member (name)
WHERE pairs.stored -> member.name IS DISTINCT FROM pairs.sent -> member.name
    AND NOT (member.name = 'ended_at' AND pairs.stored ->> 'ended_at' IS NULL)
    AND NOT (member.name = 'metadata' AND pairs.sent -> 'metadata' IS NOT DISTINCT FROM pairs.metadata_before)
    AND NOT (pairs.erased AND member.name IN ('metadata', 'client_session_id'))
ORDER BY pairs.position ASC, member.name ASC

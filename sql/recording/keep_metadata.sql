-- keep_metadata: keep what interceptions' metadata is before other metadata is merged in, where that changes anything.
--
-- param   ids       uuid[]   the interceptions
-- param   metadata  jsonb[]  what is to be merged in, in the same order
-- result  none
-- index   aibridge_interceptions_pkey
INSERT INTO bridgelog_merged_metadata (interception_id, metadata_before)
SELECT
    stored.id AS interception_id,
    stored.metadata AS metadata_before
FROM unnest(:ids::uuid[], :metadata::jsonb[]) AS sent (id, metadata)
INNER JOIN aibridge_interceptions AS stored ON sent.id = stored.id
WHERE stored.metadata || sent.metadata <> stored.metadata
    -- What erasure has removed does not come back.
    AND stored.id NOT IN (
        SELECT erased.id
        FROM bridgelog_erased_interceptions AS erased
        WHERE erased.id = ANY(:ids)
    )
ORDER BY stored.id ASC
ON CONFLICT (interception_id) DO NOTHING

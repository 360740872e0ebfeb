-- merge_metadata: merge metadata into that of interceptions, member by member, where that changes anything.
--
-- param   ids       uuid[]   the interceptions
-- param   metadata  jsonb[]  what is to be merged in, in the same order
-- result  none
-- index   aibridge_interceptions_pkey
UPDATE aibridge_interceptions
SET metadata = aibridge_interceptions.metadata || sent.metadata
FROM unnest(:ids::uuid[], :metadata::jsonb[]) AS sent (id, metadata)
WHERE aibridge_interceptions.id = sent.id
    AND aibridge_interceptions.metadata || sent.metadata <> aibridge_interceptions.metadata
    -- What erasure has removed does not come back.
    AND aibridge_interceptions.id NOT IN (
        SELECT erased.id
        FROM bridgelog_erased_interceptions AS erased
        WHERE erased.id = ANY(:ids)
    )

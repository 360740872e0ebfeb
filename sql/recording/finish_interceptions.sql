-- finish_interceptions: set the end of those interceptions that have none, and merge metadata into theirs, member by member.
-- What the metadata was before is kept where that changes anything. Each row is written once.
--
-- param   ids       uuid[]         the interceptions
-- param   ended_at  timestamptz[]  their ends, in the same order
-- param   metadata  jsonb[]        what is to be merged in, likewise
-- result  none
-- index   aibridge_interceptions_pkey
WITH sent AS (
    SELECT
        sent.*,
        -- What erasure has removed does not come back.
        sent.id IN (
            SELECT erased.id
            FROM bridgelog_erased_interceptions AS erased
            WHERE erased.id = ANY(:ids)
        ) AS erased
    FROM unnest(:ids::uuid[], :ended_at::timestamptz[], :metadata::jsonb[]) AS sent (id, ended_at, metadata)
),

kept AS (
    INSERT INTO bridgelog_merged_metadata (interception_id, metadata_before)
    SELECT
        stored.id AS interception_id,
        stored.metadata AS metadata_before
    FROM sent
    INNER JOIN aibridge_interceptions AS stored ON sent.id = stored.id
    WHERE stored.ended_at IS NULL
        AND stored.metadata || sent.metadata <> stored.metadata
        AND NOT sent.erased
    ORDER BY stored.id ASC
    ON CONFLICT (interception_id) DO NOTHING
)

UPDATE aibridge_interceptions
SET
    ended_at = sent.ended_at,
    metadata = CASE
        WHEN sent.erased THEN aibridge_interceptions.metadata
        ELSE aibridge_interceptions.metadata || sent.metadata
    END
FROM sent
WHERE aibridge_interceptions.id = sent.id
    AND aibridge_interceptions.ended_at IS NULL

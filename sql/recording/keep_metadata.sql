-- keep_metadata: keep what an interception's metadata is before other metadata is merged in, if that changes anything.
--
-- param   interception_id  uuid   the interception
-- param   metadata         jsonb  what is to be merged in
-- result  none
-- index   aibridge_interceptions_pkey
INSERT INTO bridgelog_merged_metadata (interception_id, metadata_before)
SELECT
    id AS interception_id,
    metadata AS metadata_before
FROM aibridge_interceptions
WHERE id = :interception_id
    AND metadata || :metadata <> metadata
    -- What erasure has removed does not come back.
    AND id NOT IN (
        SELECT erased.id
        FROM bridgelog_erased_interceptions AS erased
        WHERE erased.id = :interception_id
    )
ON CONFLICT (interception_id) DO NOTHING

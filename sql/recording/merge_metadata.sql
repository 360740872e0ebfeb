-- merge_metadata: merge metadata into an interception's, member by member, if that changes anything.
--
-- param   interception_id  uuid   the interception
-- param   metadata         jsonb  what is to be merged in
-- result  none
-- index   aibridge_interceptions_pkey
UPDATE aibridge_interceptions
SET metadata = metadata || :metadata
WHERE id = :interception_id
    AND metadata || :metadata <> metadata
    -- What erasure has removed does not come back.
    AND id NOT IN (
        SELECT erased.id
        FROM bridgelog_erased_interceptions AS erased
        WHERE erased.id = :interception_id
    )

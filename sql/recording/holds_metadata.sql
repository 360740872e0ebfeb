-- holds_metadata: whether merging metadata into an interception's would change nothing, be it that erasure lets nothing in.
--
-- param   interception_id  uuid   the interception
-- param   metadata         jsonb  what would be merged in
-- result  one  held boolean
-- index   aibridge_interceptions_pkey
SELECT
    metadata || :metadata = metadata
    OR id IN (
        SELECT erased.id
        FROM bridgelog_erased_interceptions AS erased
        WHERE erased.id = :interception_id
    ) AS held
FROM aibridge_interceptions
WHERE id = :interception_id

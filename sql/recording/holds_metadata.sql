-- holds_metadata: whether merging metadata into an interception's would change nothing.
--
-- param   interception_id  uuid   the interception
-- param   metadata         jsonb  what would be merged in
-- result  one  held boolean
-- index   aibridge_interceptions_pkey
SELECT metadata || :metadata = metadata AS held
FROM aibridge_interceptions
WHERE id = :interception_id

-- find_cursor: where a page after an interception begins, if the caller may see that interception and it has ended.
--
-- param   interception_id  uuid  the last interception already seen
-- param   visible_to       uuid  optional: only what this user initiated
-- result  maybe  started_at timestamptz
-- index   aibridge_interceptions_pkey
SELECT started_at
FROM aibridge_interceptions
WHERE id = :interception_id
    AND ended_at IS NOT NULL
    AND initiator_id = :visible_to  -- optional

-- erase_user_prompts: take text and metadata from the prompts of interceptions.
--
-- param   ids  uuid[]  the interceptions
-- result  one  erased bigint
-- index   aibridge_user_prompts_interception_id_idx
WITH erased AS (
    UPDATE aibridge_user_prompts
    SET prompt = '', metadata = '{}'
    WHERE interception_id = ANY(:ids)
        AND (prompt <> '' OR metadata <> '{}')
    RETURNING 1
)

SELECT count(*) AS erased
FROM erased

-- erase_token_usages: take the metadata from the token usages of interceptions.
--
-- param   ids  uuid[]  the interceptions
-- result  one  erased bigint
-- index   aibridge_token_usages_interception_id_idx
WITH erased AS (
    UPDATE aibridge_token_usages
    SET metadata = '{}'
    WHERE interception_id = ANY(:ids)
        AND metadata <> '{}'
    RETURNING 1
)

SELECT count(*) AS erased
FROM erased

-- erase_tool_usages: take input, error, server and metadata from the tool usages of interceptions; the tools' names stay.
--
-- param   ids  uuid[]  the interceptions
-- result  one  erased bigint
-- index   aibridge_tool_usages_interception_id_idx
WITH erased AS (
    UPDATE aibridge_tool_usages
    SET input = '', server_url = NULL, invocation_error = NULL, metadata = '{}'
    WHERE interception_id = ANY(:ids)
        AND (input <> '' OR server_url IS NOT NULL OR invocation_error IS NOT NULL OR metadata <> '{}')
    RETURNING 1
)

SELECT count(*) AS erased
FROM erased

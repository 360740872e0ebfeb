-- erase_interceptions: take metadata and the client's session from interceptions, and what is kept of earlier metadata.
--
-- param   ids  uuid[]  the interceptions
-- result  one  erased bigint
-- index   aibridge_interceptions_pkey, bridgelog_merged_metadata_pkey
WITH forgotten AS (
    DELETE FROM bridgelog_merged_metadata
    WHERE interception_id = ANY(:ids)
),

erased AS (
    UPDATE aibridge_interceptions
    SET metadata = '{}', client_session_id = NULL
    WHERE id = ANY(:ids)
        AND (metadata <> '{}' OR client_session_id IS NOT NULL)
    RETURNING 1
)

SELECT count(*) AS erased
FROM erased

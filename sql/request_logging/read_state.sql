-- read_state: whether upstream requests are logged, since when, and who said so. No row: never switched, off.
--
-- result  maybe  enabled boolean, changed_at timestamptz, changed_by uuid
-- index   bridgelog_request_logging_changes_pkey
SELECT
    enabled,
    changed_at,
    changed_by
FROM bridgelog_request_logging_changes
ORDER BY id DESC
LIMIT 1

-- The constraints and indexes of the log's big tables: what drops each, and what makes it again, in that order.
WITH big (id) AS (
    VALUES
    ('aibridge_interceptions'::regclass), ('aibridge_token_usages'), ('aibridge_user_prompts'),
    ('aibridge_tool_usages'), ('aibridge_model_thoughts'), ('bridgelog_merged_metadata')
)

SELECT
    format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) AS drops,
    format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) AS makes,
    CASE contype WHEN 'f' THEN 3 ELSE 1 END AS place
FROM pg_constraint
WHERE conrelid IN (SELECT id FROM big)
    AND contype IN ('f', 'p')
UNION ALL
SELECT
    format('DROP INDEX %s', indexrelid::regclass),
    pg_get_indexdef(indexrelid),
    2
FROM pg_index
WHERE indrelid IN (SELECT id FROM big)
    AND NOT indisprimary
ORDER BY place

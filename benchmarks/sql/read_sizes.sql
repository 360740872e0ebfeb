-- The rollups on disk, and the log's main table beside them.
SELECT
    relname AS name,
    greatest(reltuples, 0)::bigint AS rows,
    pg_table_size(oid) / 1048576.0 AS data,
    pg_indexes_size(oid) / 1048576.0 AS indexes
FROM pg_class
WHERE relkind = 'r'
    AND relnamespace = 'public'::regnamespace
    AND (relname LIKE 'bridgelog\_rollup\_%' OR relname = 'aibridge_interceptions')
ORDER BY relname ASC

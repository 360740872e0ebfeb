-- find_rollups: whether this database has rollups.
--
-- result  one  found boolean
-- index   none
SELECT to_regclass('bridgelog_rollup_state') IS NOT NULL AS found

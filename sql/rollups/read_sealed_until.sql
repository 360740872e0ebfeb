-- read_sealed_until: up to where the rollups reach.
--
-- result  one  sealed_until timestamptz
-- index   none
SELECT sealed_until
FROM bridgelog_rollup_state

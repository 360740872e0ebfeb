-- set_sealed_until: note up to where the rollups reach now. Only behind lock_sealing.
--
-- param   seal_until  timestamptz  up to where they reach
-- result  none
-- index   none
UPDATE bridgelog_rollup_state
SET sealed_until = :seal_until

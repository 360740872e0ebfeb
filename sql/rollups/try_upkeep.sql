-- try_upkeep: take the right to seal, fold and rebuild until the transaction ends, unless another process has it.
--
-- result  one  taken boolean
-- index   none
SELECT pg_try_advisory_xact_lock(4770321905514819) AS taken

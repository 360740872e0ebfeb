-- try_retention: take the right to remove what is due until the transaction ends, unless another process has it.
--
-- result  one  taken boolean
-- index   none
SELECT pg_try_advisory_xact_lock(4770321905514830) AS taken

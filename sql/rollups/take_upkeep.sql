-- take_upkeep: wait for the right to seal, fold and rebuild, and keep it until the transaction ends.
--
-- result  one  taken text
-- index   none
SELECT pg_advisory_xact_lock(4770321905514819)::text AS taken

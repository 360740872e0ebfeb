-- lock_sealing: wait until nobody who writes interceptions is in the middle of it, and hold off those who come next, until
-- the transaction ends.
--
-- result  one  locked text
-- index   none
SELECT pg_advisory_xact_lock(4770321905514818)::text AS locked

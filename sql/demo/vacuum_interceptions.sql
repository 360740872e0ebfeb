-- vacuum_interceptions: mark the pages that a fill wrote as visible to all, so that counts read the index alone. Not
-- inside a transaction.
--
-- result  none
-- index   none
VACUUM aibridge_interceptions

-- read_replayed: up to where this standby has replayed the log of its primary, in bytes; no row where it is no standby.
--
-- result  maybe  replayed int8
-- index   none
SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint AS replayed
WHERE pg_is_in_recovery()

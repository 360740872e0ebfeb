-- read_position: up to where this server has written its log safely, in bytes; no row where it is a standby.
--
-- result  maybe  position int8
-- index   none
SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint AS position
WHERE NOT pg_is_in_recovery()

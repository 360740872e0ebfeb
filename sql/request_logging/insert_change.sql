-- insert_change: the switch is turned.
--
-- param   enabled     boolean      the new state
-- param   changed_at  timestamptz  when
-- param   changed_by  uuid         who
-- result  none
-- index   none
INSERT INTO bridgelog_request_logging_changes (enabled, changed_at, changed_by)
VALUES (:enabled, :changed_at, :changed_by)

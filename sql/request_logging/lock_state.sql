-- lock_state: until the transaction ends, nobody else changes the switch.
--
-- result  none
-- index   none
LOCK TABLE bridgelog_request_logging_changes IN SHARE ROW EXCLUSIVE MODE

DROP TABLE bridgelog_request_logging_changes;
DROP FUNCTION bridgelog_notify_request_logging();

-- The switch for logging upstream requests. Every change is a row, who and when; the newest row is the state, and no row
-- means off. The trigger tells every replica, also of a change made by hand.

CREATE TABLE bridgelog_request_logging_changes (
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    enabled boolean NOT NULL,
    changed_at timestamptz NOT NULL,
    changed_by uuid,
    CONSTRAINT bridgelog_request_logging_changes_pkey PRIMARY KEY (id)
);

CREATE FUNCTION bridgelog_notify_request_logging() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('bridgelog_request_logging', '');
    RETURN NULL;
END;
$$;

CREATE TRIGGER bridgelog_request_logging_changes_notify
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON bridgelog_request_logging_changes
FOR EACH STATEMENT EXECUTE FUNCTION bridgelog_notify_request_logging();

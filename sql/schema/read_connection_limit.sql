-- read_connection_limit: how many connections the server keeps for roles without privileges.
--
-- result  one  connections integer
-- index   none
SELECT
    current_setting('max_connections')::integer
    - current_setting('superuser_reserved_connections')::integer
    - coalesce(current_setting('reserved_connections', TRUE)::integer, 0) AS connections    -- since PostgreSQL 16

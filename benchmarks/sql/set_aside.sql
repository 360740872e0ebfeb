-- Before a log grows tenfold: its interceptions become a template, and nothing watches what is written from here on.
SET session_replication_role = replica;
CREATE TABLE bench_template AS TABLE aibridge_interceptions;
TRUNCATE aibridge_interceptions, bridgelog_rollup_buckets, bridgelog_rollup_changes;
UPDATE bridgelog_rollup_state SET sealed_until = '-infinity';

-- The copies are numbered, and number 0 is the original. A session moves as a whole, by up to two hours.
CREATE FUNCTION pg_temp.of_copy(original uuid, number integer) RETURNS uuid IMMUTABLE LANGUAGE sql
RETURN CASE WHEN number = 0 THEN original ELSE md5(original || ' ' || number)::uuid END;

CREATE FUNCTION pg_temp.earlier(session_id text, number integer) RETURNS interval IMMUTABLE LANGUAGE sql
RETURN CASE
    WHEN number = 0 THEN interval '0'
    ELSE (hashtextextended(session_id, number) & 4194303) * interval '1700 microseconds'
END;

-- Three copies are more work of the same people, six are work of others: four times as much each, seven times as many.
CREATE FUNCTION pg_temp.person(original uuid, number integer) RETURNS uuid IMMUTABLE LANGUAGE sql
RETURN CASE WHEN number <= 3 THEN original ELSE md5(original || ' ' || number)::uuid END;

INSERT INTO users (id, username, name, avatar_url, status, rbac_roles, created_at, updated_at)
SELECT
    pg_temp.person(users.id, copy.number),
    users.username || '-' || copy.number,
    users.name,
    users.avatar_url,
    users.status,
    '{}',
    users.created_at,
    users.updated_at
FROM users
CROSS JOIN generate_series(4, 9) AS copy (number)
WHERE EXISTS (SELECT FROM bench_template WHERE bench_template.initiator_id = users.id);

-- refresh_user: create the user of this id, or refresh what differs of their names; never roles or status.
--
-- Somebody who was erased comes back by what started later, and not by what is sent again.
--
-- Of a user who is up to date the row is not even locked: one who is busy records many interceptions at once.
--
-- param   user_id     uuid         the user
-- param   username    text         the name that they have now
-- param   name        text         the person's name; null leaves it as it is
-- param   avatar_url  text         their picture; null leaves it as it is
-- param   seen_at     timestamptz  now
-- param   started_at  timestamptz  when the interception that tells of them started
-- result  none
-- index   none
INSERT INTO users (id, username, name, avatar_url, created_at, updated_at)
SELECT
    :user_id AS id,
    :username,
    coalesce(:name, '') AS name,
    coalesce(:avatar_url, '') AS avatar_url,
    :seen_at AS created_at,
    :seen_at AS updated_at
WHERE NOT EXISTS (
    SELECT 1
    FROM users
    WHERE users.id = :user_id
        AND users.username = :username
        AND users.name = coalesce(:name, users.name)
        AND users.avatar_url = coalesce(:avatar_url, users.avatar_url)
)
AND NOT EXISTS (
    SELECT 1
    FROM bridgelog_erased_users
    WHERE bridgelog_erased_users.user_id = :user_id
        AND bridgelog_erased_users.erased_until >= :started_at
)
ON CONFLICT (id) DO UPDATE
SET
    username = excluded.username,
    name = coalesce(:name, users.name),
    avatar_url = coalesce(:avatar_url, users.avatar_url),
    updated_at = excluded.updated_at
WHERE users.username <> excluded.username
    OR users.name <> coalesce(:name, users.name)
    OR users.avatar_url <> coalesce(:avatar_url, users.avatar_url)

-- refresh_user: create the user of this id, or refresh what differs of their names; never roles or status.
--
-- param   user_id     uuid         the user
-- param   username    text         the name that they have now
-- param   name        text         the person's name; null leaves it as it is
-- param   avatar_url  text         their picture; null leaves it as it is
-- param   seen_at     timestamptz  now
-- result  none
-- index   none
INSERT INTO users (id, username, name, avatar_url, created_at, updated_at)
VALUES (:user_id, :username, coalesce(:name, ''), coalesce(:avatar_url, ''), :seen_at, :seen_at)
ON CONFLICT (id) DO UPDATE
SET
    username = excluded.username,
    name = coalesce(:name, users.name),
    avatar_url = coalesce(:avatar_url, users.avatar_url),
    updated_at = excluded.updated_at
WHERE users.username <> excluded.username
    OR users.name <> coalesce(:name, users.name)
    OR users.avatar_url <> coalesce(:avatar_url, users.avatar_url)

-- insert_missing_users: create those users whose id does not exist and whose name nobody holds; the others stay as they are.
--
-- param   user_id     uuid[]       ids
-- param   username    text[]       names to sign in as
-- param   name        text[]       the persons' names
-- param   avatar_url  text[]       their pictures
-- param   seen_at     timestamptz  now
-- result  none
-- index   none
INSERT INTO users (id, username, name, avatar_url, created_at, updated_at)
SELECT
    sent.user_id AS id,
    sent.username,
    sent.name,
    sent.avatar_url,
    :seen_at AS created_at,
    :seen_at AS updated_at
FROM unnest(:user_id::uuid[], :username::text[], :name::text[], :avatar_url::text[])
    AS sent (user_id, username, name, avatar_url)
ORDER BY sent.user_id ASC
ON CONFLICT DO NOTHING

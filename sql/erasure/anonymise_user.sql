-- anonymise_user: take a user's names and picture.
--
-- Who is called so already, by either name, stays so.
--
-- param   user_id         uuid         the user
-- param   username        text         what they are called from now on
-- param   other_username  text         what instead, where somebody else has that name
-- param   updated_at      timestamptz  now
-- result  none
-- index   users_pkey, users_username_lower_idx
UPDATE users
SET
    username = CASE
        WHEN starts_with(users.username, :username || '-') THEN users.username
        WHEN EXISTS (
            SELECT
            FROM users AS others
            WHERE lower(others.username) = lower(:username)
                AND NOT others.deleted
                AND others.id <> :user_id
        ) THEN :other_username
        ELSE :username
    END,
    name = '',
    avatar_url = '',
    updated_at = :updated_at
WHERE users.id = :user_id

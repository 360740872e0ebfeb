-- anonymise_user: take a user's names and picture.
--
-- param   user_id     uuid         the user
-- param   username    text         what they are called from now on, which nobody else is
-- param   updated_at  timestamptz  now
-- result  none
-- index   users_pkey
UPDATE users
SET username = :username, name = '', avatar_url = '', updated_at = :updated_at
WHERE id = :user_id

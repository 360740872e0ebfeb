-- set_status: suspend a user, or let them in again.
--
-- param   username    text         the user's name, in any case
-- param   status      text         active or suspended
-- param   updated_at  timestamptz  now
-- result  maybe  id uuid
-- index   users_username_lower_idx
UPDATE users
SET status = :status, updated_at = :updated_at
WHERE lower(username) = lower(:username) AND NOT deleted
RETURNING id

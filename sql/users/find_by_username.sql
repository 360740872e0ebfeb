-- find_by_username: the user who holds a name now, without regard to case.
--
-- param   username    text  the name
-- param   visible_to  uuid  optional: only this user may be found
-- result  maybe  id uuid
-- index   users_username_lower_idx
SELECT id
FROM users
WHERE lower(username) = lower(:username)
    AND NOT deleted
    AND id = :visible_to  -- optional

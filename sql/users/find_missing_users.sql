-- find_missing_users: which of these ids have no user.
--
-- param   user_ids  uuid[]  ids
-- result  many  id uuid
-- index   users_pkey
SELECT sent.id
FROM unnest(:user_ids::uuid[]) AS sent (id)
WHERE NOT EXISTS (
    SELECT 1
    FROM users
    WHERE users.id = sent.id
)

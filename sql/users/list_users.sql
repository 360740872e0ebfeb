-- list_users: everyone who is not deleted, by name.
--
-- result  many  id uuid, username text, name text, status text, roles text[]
-- index   none
SELECT
    id,
    username,
    name,
    status::text AS status,
    rbac_roles AS roles
FROM users
WHERE NOT deleted
ORDER BY lower(username) ASC, id ASC

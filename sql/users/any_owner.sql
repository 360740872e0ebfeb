-- any_owner: whether there is anybody who may do everything.
--
-- result  one  found boolean
-- index   none
SELECT count(*) > 0 AS found
FROM users
WHERE 'owner' = ANY(rbac_roles) AND NOT deleted

-- any_owner: whether there is anybody who may do everything.
--
-- result  one  found boolean
-- index   none
SELECT EXISTS (SELECT 1 FROM users WHERE 'owner' = ANY(rbac_roles) AND NOT deleted) AS found

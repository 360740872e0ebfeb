-- any_user: whether there is a user at all.
--
-- result  one  found boolean
-- index   none
SELECT EXISTS (SELECT 1 FROM users) AS found

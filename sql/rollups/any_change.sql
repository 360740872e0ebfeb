-- any_change: whether there is anything to fold.
--
-- result  one  found boolean
-- index   none
SELECT EXISTS(SELECT 1 FROM bridgelog_rollup_changes) AS found

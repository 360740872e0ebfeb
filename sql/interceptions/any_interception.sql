-- any_interception: whether anything is recorded at all, ended or not.
--
-- result  one  found boolean
-- index   none
SELECT EXISTS(SELECT 1 FROM aibridge_interceptions) AS found

-- ping: does the database answer?
--
-- result  one  answer int4
-- index   none
SELECT 1 AS answer

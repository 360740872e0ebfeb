-- set_patience: in this transaction, give up a lock after so long, rather than to make everybody who writes wait behind it.
--
-- param   milliseconds  bigint  how long
-- result  one  patience text
-- index   none
SELECT set_config('lock_timeout', (:milliseconds::bigint)::text, TRUE) AS patience
